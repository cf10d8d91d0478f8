"""Convert the overrides of a command line to pipeline parameters, one list per config group.

A list has a canonical form: the choice of the group, then the values that differ from that choice.
The cache key therefore depends on the config and not on how the command line specifies it. The
values that `experiment=` sets in several groups are divided among the lists of these groups.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from arcloop.config.composition import bundled, compose_config, to_plain
from arcloop.errors import ConfigError
from arcloop.pipeline.steps import STEPS

DEPLOY_READS = ("name", "force", "deploy")
"""Config groups and settings that the deploy step reads; `STEPS` has no row for it."""
_PIPELINE_GROUPS = ("cluster", "notify", "experiment")
_DEFAULT_CHOICES = {"callbacks": "export_only", "cluster": "local", "notify": "none"}
"""Default choices that only a pipeline has: embed, index and evaluate are separate tasks."""
_TYPES = {
    "LIST": list,
    "STRING": str,
    "BOOLEAN": bool,
    "NUMBER_INTEGER": int,
    "NUMBER_DOUBLE": float,
    "STRUCT": dict,
}


def parameter_names() -> tuple[str, ...]:
    """Return the names of the pipeline's parameters: all groups and settings that steps read."""
    read = [name for step in STEPS.values() for name in step.reads]
    return tuple(dict.fromkeys([*read, *DEPLOY_READS]))


@dataclass(frozen=True)
class Request:
    """A config and the pipeline parameters that describe it.

    Attributes:
        config: The composed, checked config.
        unresolved: The config as dicts, lists and scalars, with its interpolations.
        plain: The config as dicts, lists and scalars, with interpolations resolved.
        parameters: Pipeline parameter -> overrides of that group.
    """

    config: DictConfig
    unresolved: Mapping[str, Any]
    plain: Mapping[str, Any]
    parameters: Mapping[str, list[str]]


def read_request(overrides: Sequence[str]) -> Request:
    """Compose and check the config, and divide the overrides by group.

    Args:
        overrides: Hydra overrides, as on the command line.

    Raises:
        ConfigError: An override is invalid, or a pipeline does not support it.
    """
    chosen = {override.partition("=")[0] for override in overrides}
    defaults = [f"{group}={name}" for group, name in _DEFAULT_CHOICES.items()]
    base = [choice for choice in defaults if choice.partition("=")[0] not in chosen]
    config = compose_config([*base, *overrides])
    choices = _choices([*base, *overrides])
    choices.pop("experiment", None)
    start = _unresolved(_composed([f"{group}={choice}" for group, choice in choices.items()]))
    unresolved, plain = _unresolved(config), to_plain(config)
    parameters: dict[str, list[str]] = {name: [] for name in parameter_names()}
    for group, choice in choices.items():
        if group in parameters and _base_choices().get(group) != choice:
            parameters[group].append(f"{group}={choice}")
    unused = []
    for path, change in _changes(start, unresolved, plain):
        if path[0] in parameters:
            parameters[path[0]].append(change)
        elif path[0] not in _PIPELINE_GROUPS:
            unused.append(f"{path[0]} has no effect in a pipeline, which chooses its own folders")
    if unused:
        raise ConfigError(
            "\n".join(dict.fromkeys(unused)), remedy="remove the override; nothing was started"
        )
    # The default of `name` depends on the data, which the deploy step does not read.
    parameters["name"] = [f"name={_format(plain['name'])}"]
    return Request(config, unresolved, plain, parameters)


def check_parameters(compiled: Path, parameters: Mapping[str, Any]) -> None:
    """Check parameters against the compiled pipeline; neither kfp nor its client checks them.

    Args:
        compiled: The IR YAML.
        parameters: Parameter -> value.

    Raises:
        ConfigError: A parameter is unknown, missing or of another type; the message lists all.
    """
    spec = next(yaml.safe_load_all(compiled.read_text(encoding="utf-8")))
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    faults = [
        f"the pipeline needs the parameter {name}"
        for name, definition in known.items()
        if name not in parameters and not definition.get("isOptional")
    ]
    for name, value in parameters.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            faults.append(f"the pipeline has no parameter {name}{hint}")
        elif not isinstance(value, kind := _TYPES[known[name]["parameterType"]]):
            faults.append(f"the parameter {name} must be a {kind.__name__}, not {value!r}")
        elif "{{$" in str(value):
            faults.append(f"the parameter {name} contains '{{{{$', which begins a placeholder")
    if faults:
        raise ConfigError("\n".join(faults), where=compiled, remedy="nothing was submitted")


@functools.cache
def _base_choices() -> Mapping[str, str]:
    return _choices([])


def _choices(overrides: Sequence[str]) -> dict[str, str]:
    """Return group -> name of the file that the config is composed from."""
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
    """Yield the overrides that change `start` to `given`, each with its path."""
    for key, value in given.items():
        here = (*path, key)
        dotted = ".".join(here)
        if key not in start:
            yield here, f"+{dotted}={_format(_resolve(value, plain[key]))}"
        elif isinstance(value, dict) and isinstance(start[key], dict):
            yield from _changes(start[key], value, plain[key], here)
        elif value != start[key] or type(value) is not type(start[key]):
            yield here, f"{dotted}={_format(_resolve(value, plain[key]))}"
    for key in start:
        if key not in given:
            yield (*path, key), "~" + ".".join((*path, key))


def _resolve(value: Any, resolved: Any) -> Any:
    """Return the value to pass to a step.

    Values are resolved here, because a step does not know the values of all groups. Only values
    that depend on `run_dir` stay unresolved, because a step has another run directory.
    """
    return value if "${run_dir}" in json.dumps(value) else resolved


def _format(value: Any) -> str:
    """Format a value in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # In this grammar, a backslash is an escape character only before a quote.
        escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
        ending = len(value) - len(value.rstrip("\\"))
        return f"'{escaped}{value[len(value) - ending :]}'"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_format, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_format(item)}" for key, item in value.items()) + "}"
    return repr(value)
