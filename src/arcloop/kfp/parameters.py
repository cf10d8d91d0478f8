"""The parameters of a pipeline, which are derived from the config.

The parameters are lists of overrides, one list for each config group. A list has a canonical form:
the choice of the group, then the values that differ from that choice. The cache key therefore
depends on the config and not on how the command line specifies it. `experiment=` sets values in
several groups; each value is added to the list of its group.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from arcloop.config.composition import check_config, compose_unchecked, to_plain
from arcloop.config.overrides import format_value
from arcloop.errors import ConfigError
from arcloop.pipeline.steps import STEPS, Step

DEPLOY = Step("deploy", ("name", "force", "deploy"), ("run", "gallery", "index", "evaluation"), "")
"""The deploy step, which exists only in pipelines and has no output artifact."""
REGISTER = Step("register", ("name", "deploy"), ("evaluation",), "")
"""The step that adds the deployed version to the Model Registry, if there is one."""
PARAMETERS = tuple(dict.fromkeys(name for step in (*STEPS.values(), DEPLOY) for name in step.reads))
"""The pipeline's parameters: all groups and settings that the steps read, in order."""
FINGERPRINT, POINTS, SEARCH = "fingerprint", "points", "search"
"""Parameters of some pipelines: the hash of the data; the combinations of a sweep, or the trials of
a search; and the settings of a search."""
COMBINATION, OVERRIDES, SWEPT = "combination", "overrides", "swept"
"""Keys of a combination of a sweep, in addition to the parameters that vary: its name, all its
overrides, and the keys that the sweep varies."""
_PIPELINE_GROUPS = ("cluster", "notify", "experiment")
_REFUSED_GROUPS = {
    "sweep": "needs -m, and keys with several values or intervals",
    "launcher": "has no effect in a pipeline: the cluster runs its steps",
}
_DEFAULT_CHOICES = {"callbacks": "export_only", "cluster": "local", "notify": "none"}
"""Group -> choice that is the default in pipelines only. With callbacks=export_only, training does
not embed, index and evaluate, because these are tasks of their own."""


def divide_overrides(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Compose and check the config, and divide the overrides by group.

    Args:
        overrides: Hydra overrides, as on the command line.

    Returns:
        The resolved config, and the pipeline parameters: group -> overrides of that group.

    Raises:
        ConfigError: An override is invalid, or a pipeline does not support it.
    """
    overrides = add_default_choices(overrides)
    composed = _compose(tuple(overrides))
    config = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    check_config(config, overrides)
    choices, defaults = read_choices(tuple(overrides)), read_choices(())
    start = _compose_choices(tuple(choices.items()))
    plain = to_plain(config)
    parameters: dict[str, list[str]] = {name: [] for name in PARAMETERS}
    for group, choice in choices.items():
        if group in parameters and defaults.get(group) != choice:
            parameters[group].append(f"{group}={choice}")
    unused = [
        f"{group}={choices[group]} {reason}"
        for group, reason in _REFUSED_GROUPS.items()
        if group in choices
    ]
    for change in _changes(start, _unresolved(config), plain):
        group = re.split(r"[.=]", change.lstrip("+~"), maxsplit=1)[0]
        if group in parameters:
            parameters[group].append(change)
        elif group not in (*_PIPELINE_GROUPS, *_REFUSED_GROUPS):
            unused.append(f"{group} has no effect in a pipeline, which chooses its own folders")
    # The step that reads `data` does not know the backbone.
    if "model" in plain["backbone"] and "input_size:" in str(_unresolved(config)["data"]):
        parameters["data"].append(f"data.image_size={format_value(plain['data']['image_size'])}")
    # The default of `name` depends on the data, which the deploy step does not read.
    parameters["name"] = [f"name={format_value(plain['name'])}"]
    unused += [
        f"{change} contains '{{{{$', which begins a placeholder of KFP"
        for changes in parameters.values()
        for change in changes
        if "{{$" in change
    ]
    if unused:
        raise ConfigError(
            "\n".join(dict.fromkeys(unused)), remedy="remove the override; nothing was started"
        )
    return plain, parameters


def varied_steps(varied: Collection[str]) -> list[str]:
    """Return the steps whose result depends on one of these parameters, in order.

    >>> varied_steps(["index"])
    ['index', 'evaluate']
    """
    steps: list[str] = []
    changed = set(varied)
    for name, step in STEPS.items():
        if changed & {*step.reads, *step.inputs}:
            steps.append(name)
            changed.add(step.output)
    return steps


def add_default_choices(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with the choices that are defaults only in pipelines."""
    chosen = {override.partition("=")[0] for override in overrides}
    base = [f"{group}={name}" for group, name in _DEFAULT_CHOICES.items() if group not in chosen]
    return [*base, *overrides]


@functools.cache
def _compose(overrides: tuple[str, ...]) -> DictConfig:
    """Compose the config without checking it, with Hydra's own settings. Do not change it."""
    return compose_unchecked(overrides)


@functools.cache
def read_choices(overrides: tuple[str, ...]) -> dict[str, str]:
    """Return group -> name of the chosen file; `experiment` is divided into its values instead."""
    choices = _compose(overrides).hydra.runtime.choices
    return {
        group: choice
        for group, choice in choices.items()
        if not group.startswith(("hydra/", "experiment")) and choice not in (None, "null")
    }


@functools.cache
def _compose_choices(choices: tuple[tuple[str, str], ...]) -> Any:
    """Return the unresolved config of these choices.

    The result is cached, because the combinations of a sweep often have the same choices.
    """
    return _unresolved(
        compose_unchecked([f"{group}={name}" for group, name in choices], hydra=False)
    )


def _unresolved(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=False)


def _changes(
    start: Mapping[str, Any], given: Mapping[str, Any], plain: Any, prefix: str = ""
) -> Iterator[str]:
    """Yield the overrides that change `start` to `given`."""
    for name, value in given.items():
        key = f"{prefix}{name}"
        if name not in start:
            yield f"+{key}={format_value(_resolve(value, plain[name]))}"
        elif isinstance(value, dict) and isinstance(start[name], dict):
            yield from _changes(start[name], value, plain[name], f"{key}.")
        elif value != start[name] or type(value) is not type(start[name]):
            yield f"{key}={format_value(_resolve(value, plain[name]))}"
    yield from (f"~{prefix}{name}" for name in start if name not in given)


def _resolve(value: Any, resolved: Any) -> Any:
    """Return the value to pass to a step.

    Values are resolved here, because a step does not know the values of all groups. Only values
    that depend on `run_dir` stay unresolved, because a step has another run directory.
    """
    return value if "${run_dir}" in json.dumps(value) else resolved
