"""`Config.origin`: how a run was started. The run records it, and its trackers show it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from arcloop.config.composition import parse_overrides


def set_origin(
    config: DictConfig,
    command: str,
    overrides: Sequence[str],
    sweep: Mapping[str, str] | None = None,
) -> None:
    """Set `config.origin`.

    Args:
        config: The composed and checked config.
        command: The command that creates the run.
        overrides: Overrides that distinguish the run; in a sweep those of the swept keys.
        sweep: "id", "folder" and "command" of the sweep of the run; None for a single run.
    """
    origin = {"command": command, "values": given_values(overrides)}
    config.origin = _literal({**origin, "sweep": sweep})


def given_values(overrides: Sequence[str]) -> dict[str, Any]:
    """Return key -> value of overrides with one value; lists and mappings as strings.

    >>> given_values(["head=arcface", "+head.margin=0.3", "backbone.widths=[8,8]"])
    {'head': 'arcface', 'head.margin': 0.3, 'backbone.widths': '[8,8]'}
    """
    values = {}
    for override in parse_overrides(overrides):
        value, text = override.value(), str(override.input_line).partition("=")[2]
        values[override.key_or_group] = value if isinstance(value, int | float | str) else text
    return values


def _literal(value: Any) -> Any:
    """Escape strings, so that OmegaConf does not resolve "${...}" in them."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {name: _literal(child) for name, child in value.items()}
    return value
