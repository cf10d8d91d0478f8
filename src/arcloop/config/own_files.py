"""Faults in the config files of the project of the user, each with its file and line.

Hydra stops at the first fault of a file, and names neither file nor line. Therefore, the files that
a command uses are read again when a composition or its check fails.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from arcloop.config.descriptions import (
    Key,
    default_choices,
    find_in_choices,
    keys_of_choice,
    known_keys,
)
from arcloop.config.files import choices_of, config_groups, main_file
from arcloop.config.project import own_conf
from arcloop.config.signatures import read_signature
from arcloop.config.targets import RESERVED, why_not_found
from arcloop.config.value_types import describe_mismatch
from arcloop.config.yaml_files import GLOBAL, ConfigFile, Default, read_file

_UNREAD = ("cluster", "deploy", "launcher", "notify", "sweep")
"""Groups whose choices name no class, so that the check of the composed config knows no keys."""


@dataclass(frozen=True)
class Fault:
    """A fault of the config.

    Attributes:
        text: A sentence that begins with the key, or with `defaults`.
        place: File and line, if they are known.
    """

    text: str
    place: str | None = None

    @property
    def key(self) -> str:
        """The key."""
        return re.split(r"[=\s\[:;]", self.text, maxsplit=1)[0]

    def __str__(self) -> str:
        return self.text if self.place is None else f"{self.text} ({self.place})"


@dataclass(frozen=True)
class _Used:
    """A file of the project that a composition reads."""

    group: str
    file: ConfigFile

    def place(self, line: int) -> str:
        path, here = self.file.path, Path.cwd()
        shown = path.relative_to(here) if path.is_relative_to(here) else path
        return f"{shown}, line {line}"


def find_faults(given: Mapping[str, Any], groups: Collection[str] = ()) -> list[Fault]:
    """Return the faults of the project's files that a composition reads.

    These are unknown groups and choices in defaults lists, unknown keys, values of a wrong type or
    out of range, and classes that do not exist.

    Args:
        given: Group or key -> value of the overrides.
        groups: Report only faults of keys in these groups; empty: all faults.

    Raises:
        ConfigError: A file is not valid YAML.
    """
    chosen, used = _used_files(given)
    faults: dict[str, Fault] = {}
    for one in used:
        in_defaults = () if groups else _defaults_faults(one)
        for fault in (*in_defaults, *_key_faults(one, chosen, given, groups)):
            faults.setdefault(fault.text, fault)
    return list(faults.values())


def find_unread_keys(given: Mapping[str, Any]) -> list[Fault]:
    """Return the unknown keys, in the project's files, of groups whose choices name no class."""
    return find_faults(given, _UNREAD)


def find_places(given: Mapping[str, Any]) -> dict[str, str]:
    """Return key -> file and line, for the keys that the project's files set.

    Args:
        given: Group or key -> value of the overrides, which replace what files set.
    """
    return {
        one.file.full_key(key): one.place(entry.line)
        for one in _used_files(given)[1]
        for key, entry in one.file.entries.items()
        if one.file.full_key(key) not in given
    }


def _used_files(given: Mapping[str, Any]) -> tuple[dict[str, tuple[str, ...]], list[_Used]]:
    """Return the choices of each group, and the project's files in the order of the composition."""
    conf = own_conf()
    if conf is None:
        return {}, []
    groups = config_groups()
    by_command = {
        group: tuple(map(str, value if isinstance(value, list) else [value]))
        for key, value in given.items()
        if (group := key.partition("@")[0].strip("/")) in groups and value is not None
    }
    chosen = {**default_choices(), **by_command}
    main = _Used("", read_file(main_file()))
    used = {main.file.path: main}
    waiting = [(group, name) for group, names in chosen.items() for name in names]
    while waiting:
        group, name = waiting.pop(0)
        path = choices_of(group).get(name)
        if path is None or path in used:
            continue
        used[path] = _Used(group, read_file(path, group))
        for default in used[path].file.defaults:
            if default.is_override and default.group not in by_command:
                chosen[default.group] = default.choices
            waiting += [(default.group, choice) for choice in default.choices]
    own = [one for path, one in used.items() if path.is_relative_to(conf)]
    return chosen, sorted(own, key=lambda one: one.file.package == GLOBAL and one.group != "")


def _defaults_faults(one: _Used) -> Iterator[Fault]:
    for default in one.file.defaults:
        if text := _default_fault(one.group, default):
            yield Fault(f"defaults: {text}", one.place(default.line))


def _default_fault(group: str, default: Default) -> str | None:
    """Return what is wrong with an item of a defaults list, or None."""
    if default.group.startswith("hydra") or not default.group or default.is_optional:
        return None
    options = choices_of(default.group)
    if not options:
        name = default.group.removeprefix(f"{group}/")
        near = difflib.get_close_matches(name, config_groups(), n=1)
        if near == [name]:
            return f"there is no group {default.group}; write `override /{name}: ...`"
        return f"there is no group {name}" + (f"; did you mean {near[0]}?" if near else "")
    for choice in default.choices:
        if choice not in options and "${" not in choice:
            near = difflib.get_close_matches(choice, options, n=2)
            hint = (
                f"did you mean {' or '.join(near)}?" if near else f"choices: {', '.join(options)}"
            )
            return f"there is no {default.group}={choice}; {hint}"
    if not default.is_override and default.group in default_choices() and group not in (
        "", default.group
    ):  # fmt: skip
        return (
            f"{default.group} has a choice in config.yaml; write `override /{default.group}: ...`"
        )
    return None


def _key_faults(
    one: _Used, chosen: Mapping[str, tuple[str, ...]], given: Mapping[str, Any],
    groups: Collection[str],
) -> Iterator[Fault]:  # fmt: skip
    """Yield the faults of the keys of a file; keys that the command line sets are left out."""
    own: dict[str, Key] = {}
    if groups and one.file.package not in (GLOBAL, *groups):
        return
    if one.group and one.file.package != GLOBAL:
        own = {key.name: key for key in keys_of_choice(one.group, one.file.path.stem)}
    faulty: list[str] = []
    for name, entry in one.file.entries.items():
        key = one.file.full_key(name)
        top, last = key.partition(".")[0], key.rpartition(".")[2]
        if (
            top == "hydra"
            or (groups and top not in groups)
            or key in given
            or key.startswith(tuple(f"{f}." for f in faulty))
        ):
            continue
        text = None
        if last == "_target_":
            text = _target_fault(key, entry.value)
        elif last not in RESERVED:
            known = own.get(key) or _known(key, chosen)
            is_own = one.file.package == GLOBAL and top == one.group
            if known is not None or not is_own:  # a launcher or sweep can have keys of its own
                text = _fault(key, entry.value, known, own, chosen)
        if text is not None:
            faulty.append(key)
            yield Fault(text, one.place(entry.line))


def _target_fault(key: str, value: Any) -> str | None:
    if not isinstance(value, str) or "${" in value:
        return None
    try:
        read_signature(value)
    except LookupError:
        return f"{key}={value} {why_not_found(value)}"
    return None


def _fault(
    key: str, value: Any, known: Key | None, own: Mapping[str, Key],
    chosen: Mapping[str, tuple[str, ...]],
) -> str | None:  # fmt: skip
    """Return what is wrong with a key and its value, or None."""
    if known is not None and known.is_known:
        is_read = not known.is_section and "${" not in str(value) and value != "???"
        message = _mismatch(value, known.annotation) if is_read else None
        return f"{key}={value!r} {message}" if message else None
    above, groups = key.rpartition(".")[0], config_groups()
    if not above and key in groups:
        return None
    parent = None if above in groups else own.get(above) or _known(above, chosen)
    if known is None and parent is not None and (parent.is_open or not parent.is_section):
        return None  # a key of a mapping, or of a class that takes any key
    if isinstance(value, Mapping) and "_target_" in value:
        return None  # a new node, such as a callback
    names = {*own, *(one.name for one in known_keys(chosen) if one.is_known), *groups} - {key}
    near = _nearest(key, [name for name in names if name.rpartition(".")[0] == above])
    near = near or _nearest(key, names)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{key} is unknown{hint}"


def _nearest(key: str, names: Collection[str]) -> list[str]:
    """Return the keys whose last parts are most similar to that of a key."""
    ends = {name.rpartition(".")[2]: name for name in sorted(names)}
    near = difflib.get_close_matches(key.rpartition(".")[2], ends, n=2, cutoff=0.7)
    return [ends[end] for end in near]


def _mismatch(value: Any, annotation: Any) -> str | None:
    """Return why a value does not fit; OmegaConf converts texts and numbers into each other."""
    converted = [str(value), yaml.safe_load(value) if isinstance(value, str) else value]
    message = describe_mismatch(value, annotation)
    fits = any(describe_mismatch(other, annotation) is None for other in converted)
    return None if fits else message


def _known(key: str, chosen: Mapping[str, tuple[str, ...]]) -> Key | None:
    """Return a key of config.yaml or of the chosen choices of its group, or None."""
    names = chosen.get(key.partition(".")[0])
    for choice, one in find_in_choices(key, chosen):
        if one.is_known and (not choice or not names or choice in names):
            return one
    return None
