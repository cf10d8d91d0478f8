"""Checks of a sweep before its first job."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeperConf
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from arcloop.config.composition import (
    build_node,
    compose_config,
    compose_unchecked,
    parse_overrides,
    quote_override,
)
from arcloop.config.recorded import compose_for_run, find_run_dir, names_run, recorded_overrides
from arcloop.config.targets import require_extra
from arcloop.distributed.threads import default_threads
from arcloop.errors import ConfigError
from arcloop.pipeline.chains import FROM_RUN
from arcloop.pipeline.sweeps.gpus import free_gpus
from arcloop.pipeline.sweeps.objectives import Objective, read_objectives, require_measured
from arcloop.pipeline.sweeps.pruning import check_pruner, require_search
from arcloop.pipeline.sweeps.record import folder_name
from arcloop.pipeline.sweeps.space import SEED, Space, nothing_varies
from arcloop.pipeline.sweeps.sweep_record import threads_of_new_sweep

TRAINING = ("train", "run")
"""Verbs that train a model in the folder of the job."""
_PACKAGES = {
    "sweep": "optuna",
    "launcher=joblib": "hydra_plugins.hydra_joblib_launcher",
    "launcher=gpus": "hydra_plugins.hydra_joblib_launcher",
    "launcher=slurm": "hydra_plugins.hydra_submitit_launcher",
}
"""Key, or choice of a group -> package that it needs."""


@dataclass(frozen=True)
class Plan:
    """A sweep that passed all checks.

    Attributes:
        swept: Keys that the sweep varies.
        folder: Folder that contains the folders of the jobs.
        gpus: GPUs to distribute the jobs over; if empty, the visible devices are not changed.
        in_runs: Whether the jobs differ only in the finished runs that they start from.
        total: Number of jobs.
        at_once: Number of jobs that run in parallel.
        monitor: Name of the objective.
        mode: "max" or "min" of the objective.
        threads: Threads of each job, if the sweep is new.
        extra: Overrides to add to those of the command: the recorded overrides of the run, if all
            jobs start from the same run; the folder of the sweep; the number of parallel jobs, if
            it follows from the free GPUs; and the sweeper.
        objectives: Objectives of a search; empty if there is only the monitor.
    """

    swept: tuple[str, ...]
    folder: Path
    gpus: tuple[str, ...]
    in_runs: bool
    total: int
    at_once: int
    monitor: str
    mode: str
    threads: int
    extra: tuple[str, ...]
    objectives: tuple[Objective, ...]


def plan(verb: str, arguments: Sequence[str]) -> Plan:
    """Check a sweep: each value of each key is composed with the first values of the other keys.

    Args:
        verb: Verb of the jobs.
        arguments: Overrides as given, including the swept ones.

    Raises:
        ConfigError: No key is swept, or a key, a value or the sweep is invalid.
    """
    require_search(arguments)
    _require_packages(arguments)
    given = parse_overrides(arguments)
    fixed = [o.input_line or "" for o in given if not o.is_sweep_override()]
    swept = [o for o in given if o.is_sweep_override()]
    recorded: list[str] = []
    is_named = any(o.startswith("run_dir=") and "${" not in o for o in fixed)
    if verb in FROM_RUN and (is_named or not any(names_run(o.key_or_group) for o in swept)):
        recorded = recorded_overrides(find_run_dir(fixed), arguments)
    space = Space.of([*arguments, *recorded])
    config = compose_unchecked(space.checks()[0])
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    if params:  # of a config file
        space = Space.of([*(f"{key}={value}" for key, value in params.items()), *space.given])
    space = space.zipped(config.sweep.zip)
    if not space.axes:
        raise nothing_varies()
    _check_compatibility(verb, config, given, space)
    _check_values(verb, space)
    folder = Path(config.hydra.sweep.dir)
    if verb in TRAINING:
        _check_monitor(config, folder, space)
    objectives = read_objectives(config.sweep.get("objectives"))
    require_measured(objectives, verb, config.callbacks)
    gpus = free_gpus() if OmegaConf.select(config, "launcher.gpu_each") else []
    at_once = OmegaConf.select(config, "launcher.jobs") or 1
    extra = list(recorded)
    if gpus:
        at_once = min(len(gpus), at_once)
        extra.append(f"launcher.jobs={at_once}")
    if config.hydra.sweeper._target_ == BasicSweeperConf._target_:
        extra.append("hydra.sweeper._target_=hydra_plugins.arcloop_search.GridSweeper")
    if verb not in TRAINING and not any(o.key_or_group == "hydra.sweep.dir" for o in given):
        folder = _folder_on_runs(verb, folder, space, find_run_dir(fixed) if recorded else None)
        extra += shlex.split(quote_override("hydra.sweep.dir", str(folder)))
    return Plan(
        swept=space.keys,
        folder=folder,
        gpus=tuple(gpus),
        in_runs=verb in FROM_RUN and all(_names_only_run(key, given) for key in space.keys),
        total=_count_jobs(config, space),
        at_once=at_once,
        monitor=config.monitor,
        mode=config.monitor_mode,
        threads=threads_of_new_sweep(config) if verb in TRAINING else default_threads(),
        extra=tuple(extra),
        objectives=objectives,
    )


def _require_packages(arguments: Sequence[str]) -> None:
    """Check that the packages of the search and of the launcher are installed."""
    for argument in arguments:
        package = _PACKAGES.get(argument) or _PACKAGES.get(argument.partition("=")[0])
        if package:
            require_extra("sweeps", package, where=argument)


def _names_only_run(key: str, given: Sequence[Override]) -> bool:
    """Return whether a key only selects the run and is not a setting of the verb."""
    is_data = key.partition(".")[0] == "data"
    return names_run(key) and not (is_data and any(o.key_or_group == "run_dir" for o in given))


def _folder_on_runs(verb: str, folder: Path, space: Space, run_dir: Path | None) -> Path:
    """Return the default folder of a sweep that trains nothing.

    It is not that of the sweeps that train, because each folder has one leaderboard.
    """
    name = folder.name
    if run_dir is not None:
        name = run_dir.name
    elif verb in FROM_RUN:
        name = compose_for_run(space.checks()[0]).name
    return folder.with_name(f"{name}-{verb}")


def _count_jobs(config: DictConfig, space: Space) -> int:
    if (trials := config.sweep.get("trials")) is None:
        return len(space.jobs())
    seeds = [len(axis.points) for axis in space.axes if axis.keys == (SEED,)]
    return int(trials) * max(seeds, default=1)


def first_job(verb: str, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the swept values of the first job of a sweep, and the overrides that run it alone.

    For a search, these are the first values of the lists and the lower bounds of the intervals.

    Args:
        verb: Verb of the jobs.
        arguments: Overrides as given, including the swept ones.

    Raises:
        ConfigError: No key is swept, or a key or a value is invalid.
    """
    space = Space.of(arguments)
    if not space.axes:
        raise nothing_varies()
    overrides = space.checks()[0]
    pairs = [word.lstrip("+").partition("=") for word in overrides]
    values = {key: value for key, _, value in pairs if key in space.keys}
    if verb in TRAINING and not any(key == "run_dir" for key, _, _ in pairs):
        folder = Path(compose_unchecked(overrides).hydra.sweep.dir) / folder_name(values)
        overrides += shlex.split(quote_override("run_dir", str(folder)))
    return " ".join(f"{key}={value}" for key, value in values.items()), overrides


def _check_compatibility(
    verb: str, config: DictConfig, given: Sequence[Override], space: Space
) -> None:
    searching = "objective" in config.sweep  # also `sweep=grid`
    if "sampler" not in config.sweep:
        space.require_lists()
    if searching and verb not in TRAINING:
        raise ConfigError(
            f"`arcloop {verb}` has no objective, so sweep= cannot choose values",
            remedy="omit sweep=, to run every combination",
        )
    if searching:
        build_node(config.hydra.sweeper).check(space)
    check_pruner(config)
    launcher = str(OmegaConf.select(config, "hydra.launcher._target_"))
    if launcher.endswith("SlurmLauncher") and shutil.which("srun") is None:
        raise ConfigError(
            "launcher=slurm needs Slurm, and `srun` is not on the PATH",
            remedy="run the command on a Slurm login node, or use launcher=joblib",
        )
    for override in given if verb in TRAINING else ():
        shared = not override.is_sweep_override() or len(space.keys) > 1
        line = str(override.input_line)
        if override.key_or_group == "run_dir" and shared and "${" not in line:
            raise ConfigError(
                f"several jobs of the sweep would write to {line}",
                remedy="set hydra.sweep.dir=, which contains one folder per job",
            )


def _check_monitor(config: DictConfig, folder: Path, space: Space) -> None:
    """Check that all jobs in the folder of a sweep have the same monitor.

    Raises:
        ConfigError: They cannot be ranked together with those of this sweep.
    """
    if metric := [key for key in space.keys if key in ("monitor", "monitor_mode")]:
        raise ConfigError(
            f"{metric[0]} cannot vary: the jobs of a sweep are compared by it",
            remedy="run a sweep for each, with hydra.sweep.dir=...",
        )
    if config.overwrite:
        return
    jobs = (file for file in sorted(folder.glob("*/config.yaml")) if not file.parent.is_symlink())
    for file in jobs:
        recorded = yaml.safe_load(file.read_bytes())
        there = recorded.get("monitor"), recorded.get("monitor_mode")
        if there != (config.monitor, config.monitor_mode):
            raise ConfigError(
                f"monitor={config.monitor} monitor_mode={config.monitor_mode}: the jobs in this"
                f" folder have {' '.join(map(str, there))}, so that they cannot be ranked together",
                where=folder,
                remedy="use another folder: hydra.sweep.dir=..., or overwrite=true",
            )
        return  # a sweep with another monitor was refused before


def _check_values(verb: str, space: Space) -> None:
    """Check each value of each key with the first values of the others; report all faults."""
    faults = {}
    for overrides in space.checks():
        try:
            if verb in FROM_RUN:
                compose_for_run(overrides)
            else:
                compose_config(overrides)
        except ConfigError as cause:
            faults[cause.what] = cause
    if len(faults) == 1:
        raise next(iter(faults.values()))
    if faults:
        raise ConfigError("\n".join(faults), remedy="correct the config; no job was started")
