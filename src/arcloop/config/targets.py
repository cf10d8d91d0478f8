"""Check `_target_` nodes against the signatures of their targets, without importing them."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Mapping
from typing import Any

from arcloop.config.signatures import Signature, read_signature
from arcloop.config.value_types import find_mismatches
from arcloop.errors import ConfigError

_RESERVED = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")


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
        signature = read_signature(target)
    except LookupError:
        extra = _extra_of(target.partition(".")[0])
        remedy = f"; pip install 'arcloop[{extra}]'" if extra else ""
        yield f"{key}._target_={target} is not installed{remedy}"
        return
    if signature is None:
        return
    given = {name: value for name, value in node.items() if name not in _RESERVED}
    if not signature.open:
        for name in sorted(given.keys() - signature.parameters.keys()):
            yield f"{key}.{name} is unknown; {_nearest(name, signature)}"
    hints = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    values = {n: v for n, v in given.items() if not (isinstance(v, Mapping) and "_target_" in v)}
    yield from find_mismatches(values, hints, key)
    if not node.get("_partial_"):
        for name, parameter in signature.parameters.items():
            if parameter.required and name not in given:
                yield f"{key}.{name} is required by {target}"


def _nearest(name: str, signature: Signature) -> str:
    near = difflib.get_close_matches(name, signature.parameters, n=3)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return "known: " + ", ".join(sorted(signature.parameters))


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
    """Return the extra that installs a package; None if it is installed or in no extra."""
    if importlib.util.find_spec(package) is not None:
        return None
    try:
        requirements = importlib.metadata.requires("arcloop") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra\s*==\s*['"]([\w-]+)['"]""", requirement)
        if name and extra and re.sub(r"[-.]", "_", name[0]) == package and extra[1] != "dev":
            return extra[1]
    return None
