"""What is known of each key of the config: its type, range, unit, default and description.

The choices and defaults are read from the files of conf/, types and ranges from the annotations of
the classes that take the values, and descriptions from their docstrings. A key without a class has
the comment in its file. Nothing is imported, so that classes of the project of the user and classes
that need torch are described quickly. The help of the command line, the page of all config groups
and the JSON schemas are made from this.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

from arcloop.config.docstrings import described, summary_of
from arcloop.config.files import choices_of, config_folders, config_groups, main_file
from arcloop.config.schema import Config
from arcloop.config.signatures import read_docstrings, read_signature
from arcloop.config.targets import RESERVED
from arcloop.config.value_types import field_types, type_schema
from arcloop.config.yaml_files import GLOBAL, Entry, read_choice, read_file

_SETTINGS: Mapping[str, str] = {
    "cluster": "arcloop.kfp.config.ClusterSettings",
    "deploy": "arcloop.serving.kubernetes.settings.KServeSettings",
    "notify": "arcloop.kfp.config.NotifySettings",
    "sweep": "arcloop.pipeline.sweeps.search.Search",
}
"""Class of the settings of sections without a `_target_`; a subclass of those of all choices."""
_UNITS = {
    "s": "seconds", "ms": "milliseconds", "min": "minutes", "mb": "MiB", "gb": "GB",
    "bytes": "bytes", "degrees": "degrees", "percent": "percent",
}  # fmt: skip
"""Last part of a name -> unit."""


@dataclass(frozen=True)
class Argument:
    """A value that a class takes.

    Attributes:
        annotation: Its type; Any if it is unknown.
        description: From the docstring, on one line; "" if there is none.
        default: Its default in Python; None if it has none.
        is_required: Whether there is no default.
    """

    annotation: Any
    description: str
    default: Any
    is_required: bool


_UNKNOWN = Argument(Any, "", None, is_required=False)


@dataclass(frozen=True)
class Key:
    """A key of the config.

    Attributes:
        name: Dotted name, e.g. "head.margin".
        annotation: Type of its values; Any if it is unknown.
        default: Its value in conf/, or else in Python.
        description: On one line; "" if there is none.
        is_section: Whether its value is a mapping whose keys are keys of the config.
        is_set: Whether a file sets it; otherwise a command adds it with "+".
        target: Class of a section, or "".
        is_open: Whether the section takes other keys than those that are known.
        is_known: False if a file sets it, and the class of its section does not take it.
    """

    name: str
    annotation: Any
    default: Any
    description: str
    is_section: bool = False
    is_set: bool = True
    target: str = ""
    is_open: bool = False
    is_known: bool = True

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of its values; empty if any value is allowed."""
        return type_schema(self.annotation)

    @property
    def unit(self) -> str:
        """The unit of the value, or ""."""
        unit = self.schema.get("unit") or next(
            (one["unit"] for one in self.schema.get("anyOf", ()) if "unit" in one), ""
        )
        *_, last = self.name.rpartition(".")[2].split("_")
        is_plain = last == self.name.rpartition(".")[2]  # e.g. `s`
        return str(unit) if unit or is_plain else _UNITS.get(last, "")


def arguments_of(target: str | type) -> tuple[dict[str, Argument], bool]:
    """Return the values that a class or function takes, and whether it takes others.

    Args:
        target: Dotted path, or a dataclass of the settings.
    """
    path = target if isinstance(target, str) else f"{target.__module__}.{target.__qualname__}"
    try:
        parameters = dict(read_signature(path).parameters)
    except LookupError:
        return {}, True
    is_open = parameters.pop("kwargs", None) is not None
    texts: dict[str, str] = {}
    for docstring in read_docstrings(path):
        texts |= described(docstring)
    types = {} if isinstance(target, str) else field_types(target)
    return {
        name: Argument(
            types.get(name, parameter.annotation),
            texts.get(name, "").replace("``", "`"),
            None if parameter.default is parameter.empty else parameter.default,
            parameter.default is parameter.empty or parameter.default == "???",
        )
        for name, parameter in parameters.items()
    }, is_open


def default_choices() -> dict[str, tuple[str, ...]]:
    """Return the choices of each group in config.yaml; empty for null."""
    file = read_file(main_file())
    return {d.group: d.choices for d in file.defaults if d.group in config_groups()}


def keys_of_config() -> list[Key]:
    """Return the keys of config.yaml: top-level values, and the settings of the steps."""
    file = read_file(main_file())
    types, (arguments, _) = field_types(Config), arguments_of(Config)
    keys: list[Key] = []
    for name, value in file.node.items():
        if name != "hydra":
            known = arguments.get(name, _UNKNOWN)
            argument = replace(known, annotation=types.get(name, Any))
            keys += _key(name, value, file.entries, argument)
    return keys


def keys_of_choice(group: str, choice: str) -> list[Key]:
    """Return the keys of a choice of a group: those in its file, then others that its class takes.

    Raises:
        ConfigError: There is no such choice, or a file is not valid YAML.
    """
    file = read_choice(group, choice)
    node = file.node if file.package != GLOBAL else file.node.get(group, {})
    entries = file.entries
    if file.package != GLOBAL:
        entries = {f"{file.package}.{key}": entry for key, entry in entries.items()}
    top = group if file.package == GLOBAL else file.package
    keys = list(_children(top, node, entries, _SETTINGS.get(top, "")))
    if file.package == GLOBAL:
        chosen = {default.group: default.choices for default in file.defaults}
        for name, entry in entries.items():
            is_own = name.partition(".")[0] in (group, "hydra")
            if not is_own and not isinstance(entry.value, Mapping):
                known = find_key(name, chosen) or Key(name, Any, None, entry.comment)
                keys.append(replace(known, default=entry.value))
    return keys


def summary_of_choice(group: str, choice: str) -> str:
    """Return the comment at the top of a choice's file, or the first line of its class's docstring.

    Raises:
        ConfigError: There is no such choice, or a file is not valid YAML.
    """
    file = read_choice(group, choice)
    return file.summary or summary_of(str(file.node.get("_target_", "")))


def cached_keys(group: str, choice: str) -> list[Key]:
    """Return `keys_of_choice`, read again only if a file of conf/ has changed."""
    return _choice_keys(group, choice, _version())


def section_settings(group: str) -> str:
    """Return the class of the settings of a group whose choices name no class, or ""."""
    return _SETTINGS.get(group, "")


def known_keys(chosen: Mapping[str, Sequence[str]]) -> Iterator[Key]:
    """Yield the keys of config.yaml and of the choices of groups.

    Args:
        chosen: Group -> choices; all choices of a group without an item, or with an empty one.
    """
    yield from _config_keys(_version())
    for group in config_groups():
        options = choices_of(group)
        for choice in chosen.get(group) or options:
            if choice in options and group != "experiment":
                yield from cached_keys(group, choice)


def find_key(name: str, chosen: Mapping[str, Sequence[str]] | None = None) -> Key | None:
    """Return a key of the config, or None.

    Args:
        name: Dotted name. A key that only some choices of a group have is found, too.
        chosen: Group -> choices that come first; by default those of config.yaml.
    """
    return next((key for _, key in find_in_choices(name, chosen)), None)


def find_in_choices(
    name: str, chosen: Mapping[str, Sequence[str]] | None = None
) -> Iterator[tuple[str, Key]]:
    """Yield (choice, key) for each choice of a group that has a key; ("", key) for other keys."""
    yield from (("", key) for key in _config_keys(_version()) if key.name == name)
    group = name.partition(".")[0]
    options = choices_of(group)
    first = [*(chosen or {}).get(group, ()), *default_choices().get(group, ())]
    if group != "experiment":
        for choice in dict.fromkeys([*first, *options]):
            if choice in options:
                keys = cached_keys(group, choice)
                yield from ((choice, key) for key in keys if key.name == name)


def _version() -> tuple[tuple[str, int], ...]:
    """Return what the keys of all choices depend on: the files of conf/."""
    files = (file for folder in config_folders() for file in folder.rglob("*.yaml"))
    return tuple((str(file), file.stat().st_mtime_ns) for file in files)


@functools.lru_cache(maxsize=1)
def _config_keys(_: object) -> list[Key]:
    return keys_of_config()


@functools.lru_cache(maxsize=512)
def _choice_keys(group: str, choice: str, _: object) -> list[Key]:
    return keys_of_choice(group, choice)


def _children(
    prefix: str, node: Mapping[str, Any], entries: Mapping[str, Entry], target: str | type
) -> Iterator[Key]:
    """Yield the keys of a section: those of its node, then the others that its class takes."""
    target = str(node["_target_"]) if "_target_" in node else target
    arguments, is_open = arguments_of(target) if target else ({}, True)
    for name, value in node.items():
        if name not in RESERVED:
            first, *below = _key(f"{prefix}.{name}", value, entries, arguments.get(name, _UNKNOWN))
            yield replace(first, is_known=is_open or name in arguments)
            yield from below
    for name, argument in arguments.items():
        if name not in node and not argument.is_required:
            default, description = argument.default, argument.description
            yield Key(f"{prefix}.{name}", argument.annotation, default, description, is_set=False)


def _key(name: str, value: Any, entries: Mapping[str, Entry], argument: Argument) -> Iterator[Key]:
    """Yield a key, and the keys below it."""
    annotation = argument.annotation
    comment = entries[name].comment if name in entries else ""
    description = argument.description or comment
    is_settings = isinstance(annotation, type) and is_dataclass(annotation)
    if not isinstance(value, Mapping) or not (
        is_settings or "_target_" in value or (value and annotation is Any)
    ):
        yield Key(name, annotation, value, description)
        return
    target = annotation if is_settings else str(value.get("_target_", ""))
    path = f"{target.__module__}.{target.__qualname__}" if isinstance(target, type) else target
    is_open = arguments_of(target)[1] if target else True
    yield Key(name, Any, value, description or summary_of(path),
              is_section=True, target=path, is_open=is_open)  # fmt: skip
    yield from _children(name, value, entries, target)
