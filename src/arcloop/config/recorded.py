"""Configs of commands that work on a finished run, from the overrides that the run records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from arcloop import artifacts
from arcloop.config.composition import (
    as_config_error,
    check_config,
    compose_unchecked,
    parse_overrides,
)
from arcloop.config.project import use_project_of_run
from arcloop.errors import ArtifactError


def compose_for_run(given: Sequence[str], *, required: bool = True) -> DictConfig:
    """Compose and check the config of a command on a finished run.

    The overrides that the run records come first, then the given ones.

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
    check_config(config)
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
    """Return the overrides of a finished run, without those that `given` replaces.

    From here on, the process uses the project that the run records, see `arcloop.config.project`.

    An override replaces a recorded one of the same key. A choice of a group also replaces the
    recorded values in the group, which may not exist in another choice.

    Raises:
        ArtifactError: The folder is not a run.
        ConfigError: The project of the run was moved or removed.
    """
    info = artifacts.read(run_dir, "run").info
    use_project_of_run(info, run_dir)
    recorded = info.get("overrides")
    if not isinstance(recorded, list):
        raise ArtifactError(
            "the manifest of this run does not record the overrides of its config",
            where=run_dir / artifacts.MANIFEST,
            remedy="train the run again",
        )
    replaced = {"run_dir", *(override.key_or_group for override in parse_overrides(given))}
    keys = ((override, override.partition("=")[0].lstrip("+~")) for override in recorded)
    return [o for o, key in keys if key not in replaced and key.partition(".")[0] not in replaced]


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
