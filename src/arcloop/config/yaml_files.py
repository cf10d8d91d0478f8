"""Config files with the lines, values and comments of their keys."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from arcloop.config.files import choices_of
from arcloop.errors import ConfigError

GLOBAL = "_global_"
"""Package of files whose keys are those of the whole config, such as experiments."""
_HEADER = re.compile(r"#\s*@package\s+(\S+)")


@dataclass(frozen=True)
class Entry:
    """A key in a file.

    Attributes:
        value: Its value; a mapping is a dict.
        line: Its line, from 1.
        comment: The comment at the end of this line, or "".
    """

    value: Any
    line: int
    comment: str


@dataclass(frozen=True)
class Default:
    """An item of the defaults list of a file.

    Attributes:
        group: Group from the top of conf/; "" for a file there.
        choices: Choices of the group; empty for null.
        line: Its line, from 1.
        is_override: Whether it replaces the choice that another file makes.
        is_optional: Whether the choice may be missing.
    """

    group: str
    choices: tuple[str, ...]
    line: int
    is_override: bool
    is_optional: bool


@dataclass(frozen=True)
class ConfigFile:
    """The contents of a config file.

    Attributes:
        path: The file.
        package: Dotted key that contains the keys of the file, or `GLOBAL`.
        summary: The comment at the top of the file, on one line, or "".
        node: The keys and their values, without the defaults list.
        entries: Dotted key -> entry, for the keys of all levels.
        defaults: The defaults list.
    """

    path: Path
    package: str
    summary: str
    node: Mapping[str, Any]
    entries: Mapping[str, Entry]
    defaults: tuple[Default, ...]

    def full_key(self, key: str) -> str:
        """Return the key in the config of a key in the file."""
        return key if self.package == GLOBAL else f"{self.package}.{key}"


def read_file(path: Path, group: str = "") -> ConfigFile:
    """Read a config file.

    Args:
        path: The file.
        group: Its group; "" for config.yaml.

    Raises:
        ConfigError: The file is not valid YAML.
    """
    return _read_version(path, group, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _read_version(path: Path, group: str, _: int) -> ConfigFile:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    header = _header(lines)
    found = [match[1] for line in header if (match := _HEADER.fullmatch(line))]
    package = found[0] if found else group.replace("/", ".") or GLOBAL
    summary = " ".join(
        line.removeprefix("#").strip() for line in header
        if not _HEADER.fullmatch(line) and "yaml-language-server" not in line
    )  # fmt: skip
    loader = get_yaml_loader()(text)
    loader.name = str(path)  # of the marks in errors
    try:
        root = loader.get_single_node()
        value = None if root is None else loader.construct_object(root, deep=True)
    except yaml.MarkedYAMLError as cause:
        raise yaml_error(cause) from None
    if not isinstance(value, dict):
        if value is not None:
            raise ConfigError("a config file must be a mapping", where=path, remedy="correct it")
        return ConfigFile(path, package, summary, {}, {}, ())
    node = {str(key): child for key, child in value.items() if key != "defaults"}
    entries = dict(_entries(root, value, lines, ""))
    places = [item for key, item in root.value if key.value == "defaults"]
    listed = value.get("defaults") or []
    defaults = tuple(
        _default(item, place.start_mark.line + 1, group)
        for item, place in zip(listed, places[0].value if listed else (), strict=False)
        if item != "_self_"
    )
    kept = {key: e for key, e in entries.items() if key.partition(".")[0] != "defaults"}
    return ConfigFile(path, package, summary, node, kept, defaults)


def read_choice(group: str, choice: str) -> ConfigFile:
    """Read the file of a choice with the keys of the choices of the group that it starts from.

    Raises:
        ConfigError: There is no such choice, or a file is not valid YAML.
    """
    files = choices_of(group)
    if choice not in files:
        raise ConfigError(f"there is no {group}={choice}", remedy=f"choices: {', '.join(files)}")
    own = read_file(files[choice], group)
    node: dict[str, Any] = {}
    entries: dict[str, Entry] = {}
    bases = (
        name for default in own.defaults for name in default.choices
        if default.group == group and not default.is_override and name in files and name != choice
    )  # fmt: skip
    for file in (*(read_choice(group, name) for name in bases), own):
        node = _merge(node, file.node)
        for key, entry in file.entries.items():
            known = entries.get(key)
            comment = entry.comment or (known.comment if known else "")
            entries[key] = replace(entry, comment=comment)
    return ConfigFile(own.path, own.package, own.summary, node, entries, own.defaults)


def yaml_error(cause: yaml.MarkedYAMLError) -> ConfigError:
    """Convert an error of PyYAML to one with the file and the line."""
    mark = cause.problem_mark
    place = f"{mark.name}, line {mark.line + 1}" if mark else None
    return ConfigError(
        f"this is not valid YAML: {cause.problem}", where=place, remedy="correct the file"
    )


def _header(lines: list[str]) -> list[str]:
    """Return the comments before the first key."""
    header = []
    for line in lines:
        if line.strip() and not line.startswith("#"):
            break
        header.append(line.strip())
    return [line for line in header if line]


def _entries(
    node: yaml.MappingNode, value: Mapping[Any, Any], lines: list[str], prefix: str
) -> Iterator[tuple[str, Entry]]:
    for (key, child), name in zip(node.value, value, strict=False):
        has_block = isinstance(child, yaml.CollectionNode) and not child.flow_style
        mark = key.end_mark if has_block else child.end_mark
        comment = re.search(r"(?:^:?|\s)#\s*(.*)", lines[mark.line][mark.column :])
        line = key.start_mark.line + 1
        yield f"{prefix}{name}", Entry(value[name], line, comment[1].strip() if comment else "")
        if isinstance(child, yaml.MappingNode):
            yield from _entries(child, value[name], lines, f"{prefix}{name}.")


def _default(item: Any, line: int, group: str) -> Default:
    """Read an item such as `arcface`, `/head: arcface` or `override /head: arcface`."""
    name, choice = next(iter(item.items())) if isinstance(item, dict) else ("", item)
    words = str(name).split()
    if not isinstance(item, dict):
        *keywords, path = str(item).split()
        folder, _, choice = path.rpartition("/")
        words = [*keywords, folder]
    target = (words[-1] if words else "").partition("@")[0]
    absolute = target.startswith("/") or not group
    found = target.strip("/") if absolute else "/".join(filter(None, (group, target)))
    choices = [choice] if isinstance(choice, str) else choice or []
    return Default(
        found, tuple(str(one).partition("@")[0] for one in choices), line,
        "override" in words, "optional" in words,
    )  # fmt: skip


def _merge(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**base, **other}
    for key in base.keys() & other.keys():
        if isinstance(base[key], dict) and isinstance(other[key], dict):
            merged[key] = _merge(base[key], other[key])
    return merged
