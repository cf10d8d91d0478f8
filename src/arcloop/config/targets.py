"""Check `_target_` nodes against the signatures of their targets, without importing these."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Mapping
from typing import Any

from arcloop.config.definitions import names_in_module
from arcloop.config.signatures import read_signature
from arcloop.config.value_types import find_mismatches
from arcloop.errors import ConfigError

RESERVED = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
"""Keys of a node that Hydra reads, and its target does not take."""


def find_faults(node: Any, key: str = "") -> Iterator[str]:
    """Yield the faults of all `_target_` nodes in a config.

    Args:
        node: A plain, resolved container of dicts, lists and scalars.
        key: Config key of the node, e.g. "head".

    Yields:
        One sentence per fault: unknown `_target_`, unknown key (with the nearest names), wrong
        type, value out of range, and, unless the node is a partial, a missing required key.
    """
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield from _target_faults(node, key)
        for name, child in node.items():
            yield from find_faults(child, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for number, child in enumerate(node):
            yield from find_faults(child, f"{key}[{number}]")


def _target_faults(node: Mapping[str, Any], key: str) -> Iterator[str]:
    """Yield the faults of one `_target_` node, without those of nested nodes."""
    target = str(node["_target_"])
    try:
        parameters = dict(read_signature(target).parameters)
    except LookupError:
        yield f"{key}._target_={target} {why_not_found(target)}"
        return
    is_open = parameters.pop("kwargs", None) is not None
    given = {name: value for name, value in node.items() if name not in RESERVED}
    for name in sorted(given.keys() - parameters.keys()) if not is_open else ():
        near = difflib.get_close_matches(name, parameters, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(parameters)}"
        yield f"{key}.{name} is unknown; {hint}"
    hints = {name: parameter.annotation for name, parameter in parameters.items()}
    values = {n: v for n, v in given.items() if not (isinstance(v, Mapping) and "_target_" in v)}
    yield from find_mismatches(values, hints, key)
    if not node.get("_partial_"):
        for name, parameter in parameters.items():
            if parameter.default is parameter.empty and name not in given:
                yield f"{key}.{name} is required by {target}"


def why_not_found(target: str) -> str:
    """Return the end of a sentence: what is missing, with its remedy or the nearest names."""
    module, _, name = target.rpartition(".")
    package = target.partition(".")[0]
    if importlib.util.find_spec(package) is None and (extra := _extra_of(package)):
        return f"is not installed; pip install 'arcloop[{extra}]'"
    from arcloop.config.project import own_sources  # imports Hydra, which heads do without

    sources = own_sources()
    searched = f"; searched: {sources}, and the installed packages" if sources else ""
    near = difflib.get_close_matches(name, names_in_module(module), n=2)
    hint = f"; did you mean {' or '.join(f'{module}.{n}' for n in near)}?" if near else ""
    return f"is not installed{searched}{hint}"


def require_extra(extra: str, *packages: str, where: str) -> None:
    """Check, without importing them, that the packages of an optional extra are installed.

    Args:
        extra: Extra of arcloop that installs the packages.
        *packages: Names of top-level modules.
        where: Part of the config, or command, that needs the packages, for the message.

    Raises:
        ConfigError: A package is not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} is not installed",
            where=where,
            remedy=f"pip install 'arcloop[{extra}]', with the constraints that arcloop comes with",
        )


def _extra_of(package: str) -> str | None:
    """Return the extra that installs a package; None if it is in no extra."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for requirement in importlib.metadata.requires("arcloop") or ():
            found = re.match(r"""([\w.-]+).*extra\s*==\s*['"]([\w-]+)""", requirement)
            if found and re.sub(r"[-.]", "_", found[1]) == package and found[2] != "dev":
                return found[2]
    return None
