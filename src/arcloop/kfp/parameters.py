"""Overrides as a user types them -> pipeline parameters: one list of overrides per config group.

The lists are in a canonical form: what is chosen and what differs from the choice's own values.
So two ways of writing the same config are one cache key, and an `experiment=`, which reaches into
several groups, arrives at each step as the values of the groups that this step reads.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from arcloop.config.composition import bundled, compose_config, to_plain
from arcloop.errors import ConfigError
from arcloop.pipeline.steps import STEPS

DEPLOY_READS = ("name", "force", "deploy")
"""What the deploy step reads; it is of serving/, so `STEPS` has no row for it."""
_OF_THE_PIPELINE = ("cluster", "notify", "experiment")
_BASE = {"callbacks": "export_only", "cluster": "local", "notify": "none"}
"""Choices that a pipeline starts from: embed, index and evaluate are steps of their own there."""


def parameter_names() -> tuple[str, ...]:
    """Return the pipeline's parameters: every group and setting that some step reads."""
    read = [name for step in STEPS.values() for name in step.reads]
    return tuple(dict.fromkeys([*read, *DEPLOY_READS]))


@dataclass(frozen=True)
class Request:
    """What a user asked for.

    Attributes:
        config: The composed, checked config.
        written: The same, as dicts, lists and scalars, with interpolations as they are written.
        plain: That, resolved.
        parameters: Pipeline parameter -> overrides of that group.
    """

    config: DictConfig
    written: Mapping[str, Any]
    plain: Mapping[str, Any]
    parameters: Mapping[str, list[str]]


def read_request(overrides: Sequence[str]) -> Request:
    """Compose and check the config, and divide its overrides by group.

    Raises:
        ConfigError: An override is wrong, or means nothing in a pipeline.
    """
    chosen = {override.partition("=")[0] for override in overrides}
    base = [f"{group}={choice}" for group, choice in _BASE.items() if group not in chosen]
    config = compose_config([*base, *overrides])
    choices = [
        f"{group}={choice}"
        for group, choice in _choices([*base, *overrides]).items()
        if group != "experiment"
    ]
    given, start = _unresolved(config), _unresolved(_composed(choices))
    plain = to_plain(config)
    names = parameter_names()
    parameters: dict[str, list[str]] = {name: [] for name in names}
    defaults = _default_choices()
    for choice in choices:
        group, _, value = choice.partition("=")
        if group in parameters and defaults.get(group) != value:
            parameters[group].append(choice)
    idle = []
    for path, change in _changes(start, given, plain):
        if path[0] in parameters:
            parameters[path[0]].append(change)
        elif path[0] not in _OF_THE_PIPELINE:
            idle.append(
                f"{path[0]} means nothing in a pipeline: its folders are the pipeline's own"
            )
    if idle:
        raise ConfigError(
            "\n".join(dict.fromkeys(idle)), remedy="leave it out; nothing was started"
        )
    # `name` follows the data, which the step that reads it does not know.
    parameters["name"] = [f"name={_written(plain['name'])}"]
    return Request(config, given, plain, parameters)


@functools.cache
def _default_choices() -> Mapping[str, str]:
    return _choices([])


def _choices(overrides: Sequence[str]) -> dict[str, str]:
    """Which file of each group a config is composed of."""
    config = _composed(overrides, with_hydra=True)
    return {
        group: choice
        for group, choice in config.hydra.runtime.choices.items()
        if not group.startswith("hydra/") and choice not in (None, "null")
    }


def _composed(overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    with initialize_config_dir(str(bundled("conf")), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=with_hydra)


def _unresolved(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


_Keys = tuple[str, ...]


def _changes(
    start: Mapping[str, Any], given: Mapping[str, Any], plain: Any, path: _Keys = ()
) -> Iterator[tuple[_Keys, str]]:
    """Yield the overrides that turn `start` into `given`, each with its path."""
    for key, value in given.items():
        here = (*path, key)
        dotted = ".".join(here)
        if key not in start:
            yield here, f"+{dotted}={_written(_fixed(value, plain[key]))}"
        elif isinstance(value, dict) and isinstance(start[key], dict):
            yield from _changes(start[key], value, plain[key], here)
        elif value != start[key] or type(value) is not type(start[key]):
            yield here, f"{dotted}={_written(_fixed(value, plain[key]))}"
    for key in start:
        if key not in given:
            yield (*path, key), "~" + ".".join((*path, key))


def _fixed(value: Any, resolved: Any) -> Any:
    """A value as the step must see it: interpolated here, where all groups are known.

    The run's folder is another one in the step, so what is built on it is left to the step.
    """
    return value if "${run_dir}" in json.dumps(value) else resolved


def _written(value: Any) -> str:
    """Write a value as Hydra's grammar of overrides reads it back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # Backslashes count as themselves, but before a quote.
        escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
        ending = len(value) - len(value.rstrip("\\"))
        return f"'{escaped}{value[len(value) - ending :]}'"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_written(item)}" for key, item in value.items()) + "}"
    return repr(value)
