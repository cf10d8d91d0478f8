"""Configs of commands that work on a finished run, from the config that the run records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arcloop import artifacts
from arcloop.config.composition import (
    as_config_error,
    check_config,
    compose_unchecked,
    parse_overrides,
    to_plain,
)
from arcloop.config.overrides import format_value, key_of
from arcloop.config.project import use_project_of_run
from arcloop.errors import ArtifactError, ConfigError

READ_ON_RUNS = ("calibration", "embed", "evaluate", "export", "index")
"""Config groups that the verbs on a finished run read."""
_MISSING = object()


def compose_for_run(given: Sequence[str], *, required: bool = True) -> DictConfig:
    """Compose and check the config of a command on a finished run.

    It starts from the config that the run records, see `recorded_overrides`.

    Args:
        given: Overrides of the command. They name the run, e.g. by `run_dir=runs/mnist`.
        required: Whether the run must exist if `run_dir` is not among the overrides.

    Raises:
        ArtifactError: There is no run in the folder that the overrides name.
        ConfigError: The config is invalid; the message lists every fault.
    """
    run_dir = find_run_dir(given)
    by_name = all(override.key_or_group != "run_dir" for override in parse_overrides(given))
    missing_is_valid = not required and by_name and not artifacts.exists(run_dir)
    recorded = [] if missing_is_valid else recorded_overrides(run_dir, given)
    config = compose_unchecked([*recorded, *given], hydra=False)
    config.run_dir = str(run_dir)
    check_config(config, [*recorded, *given])
    return config


def find_run_dir(given: Sequence[str]) -> Path:
    """Return the run directory that overrides name, e.g. by `run_dir='a=b'` or `name=mnist`.

    The overrides are composed, so that quotes, escapes, interpolations and defaults mean the same
    as in every other command. Overrides that cannot change the folder are left out, because they
    may have keys that only exist in the config of the run. The link `best` of a sweep is replaced
    by the folder of the job, so that this folder is recorded.

    Raises:
        ConfigError: An override is invalid.
    """
    parsed = parse_overrides(given)
    naming = [override for override in parsed if override.key_or_group == "run_dir"]
    if not naming:
        naming = [override for override in parsed if names_run(override.key_or_group)]
    elif "${" in str(naming[-1].input_line):
        naming = parsed
    config = compose_unchecked([str(override.input_line) for override in naming], hydra=False)
    try:
        return artifacts.without_link(Path(config.run_dir))
    except OmegaConfBaseException as cause:  # an interpolation that cannot be resolved
        raise as_config_error(cause) from None


def names_run(key: str) -> bool:
    """Return whether a key or config group can change the default of `run_dir`."""
    return key.partition(".")[0] in ("run_dir", "name", "data", "experiment")


def recorded_overrides(run_dir: Path, given: Sequence[str]) -> list[str]:
    """Return overrides that make the recorded config of a run, without what `given` replaces.

    From here on, the process uses the project that the run records, see `arcloop.config.project`.

    These are the overrides that the run records, and `++KEY=VALUE` for each value of
    `READ_ON_RUNS` that they would set differently today, because a config file was changed or
    removed. Keys that the version of the run did not have keep their defaults.

    An override replaces a recorded one of the same key. A choice of a group also replaces the
    recorded values in the group, which may not exist in another choice.

    Raises:
        ArtifactError: The folder is not a run.
        ConfigError: The project of the run was moved or removed.
    """
    run = artifacts.read(run_dir, "run")
    use_project_of_run(run.info, run_dir)
    recorded = run.info.get("overrides")
    if not isinstance(recorded, list):
        raise ArtifactError(
            "the manifest of this run does not record the overrides of its config",
            where=run_dir / artifacts.MANIFEST,
            remedy="train the run again",
        )
    recorded = [override for override in recorded if key_of(override) != "run_dir"]
    names = {*READ_ON_RUNS}
    try:
        today = compose_unchecked(recorded, hydra=False)
    except ConfigError:  # a file, e.g. of an experiment, was removed
        recorded, today = [], compose_unchecked((), hydra=False)
        names |= {"name", "data"}
    for name in sorted(names & run.config.keys()):
        recorded += _changes(today, name, run.config[name])
    replaced = {"run_dir", *(override.key_or_group for override in parse_overrides(given))}
    return [
        override
        for override in recorded
        if not {(key := key_of(override)), key.partition(".")[0]} & replaced
    ]


def _changes(today: DictConfig, key: str, recorded: Any) -> Iterator[str]:
    """Yield overrides that change a value of today's config to the recorded one."""
    node = OmegaConf.select(today, key, default=_MISSING)
    now = to_plain(node) if OmegaConf.is_dict(node) else node
    if OmegaConf.is_list(node):
        now = OmegaConf.to_container(node, resolve=True)
    if (
        isinstance(now, Mapping)
        and isinstance(recorded, Mapping)
        and same_target(now.get("_target_"), recorded.get("_target_"))
    ):
        for name, value in recorded.items():
            yield from _changes(today, f"{key}.{name}", value)
    elif now is _MISSING and _is_typed(today, key):
        return  # this version has no such key
    elif now != recorded:
        if isinstance(now, Mapping):
            yield f"~{key}"
        yield f"++{key}={format_value(recorded)}"


def same_target(one: str | None, other: str | None) -> bool:
    """Return whether two names refer to the same class: a manifest may have its full name."""
    if one == other or one is None or other is None:
        return one == other
    try:
        return get_object(one) is get_object(other)
    except Exception:  # noqa: BLE001 - a class that cannot be imported any more, for any reason
        return False


def _is_typed(config: DictConfig, key: str) -> bool:
    """Return whether the group of a key has a schema, which allows no other keys."""
    return OmegaConf.get_type(config, key.partition(".")[0]) is not dict


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of all leaves of a config.

    >>> dict(flatten({"head": {"margin": 0.3}, "seed": 0}))
    {'head.margin': 0.3, 'seed': 0}
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
