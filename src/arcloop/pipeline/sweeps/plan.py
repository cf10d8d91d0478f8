"""Checks of a sweep before its first job."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from arcloop.config.composition import (
    bundled,
    check_config,
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
from arcloop.pipeline.sweeps.pruning import check_pruner
from arcloop.pipeline.sweeps.record import folder_name
from arcloop.pipeline.sweeps.sweep_record import threads_of_new_sweep

TRAINING = ("train", "run")
"""Verbs whose jobs have their own folder with a record."""
_PACKAGES = {
    "sweep": "optuna",
    "launcher=joblib": "hydra_plugins.hydra_joblib_launcher",
    "launcher=gpus": "hydra_plugins.hydra_joblib_launcher",
    "launcher=slurm": "hydra_plugins.hydra_submitit_launcher",
}
"""Key, or choice of a group -> package that it needs."""
_MAX_VALUES = 32
"""Values per key that are checked before the first job; each job checks the remaining ones."""


@dataclass(frozen=True)
class Plan:
    """A sweep that passed all checks.

    Attributes:
        swept: Keys that the sweep varies.
        folder: Folder that contains the folders of the jobs.
        gpus: GPUs to distribute the jobs over; if empty, the visible devices are not changed.
        threads: Threads of each job, if the sweep is new.
        extra: Overrides to add to those of the command: the recorded overrides of the run, if all
            jobs work on the same run, and the number of parallel jobs for the free GPUs.
    """

    swept: tuple[str, ...]
    folder: Path
    gpus: tuple[str, ...]
    threads: int
    extra: tuple[str, ...]


def plan(verb: str, arguments: Sequence[str]) -> Plan:
    """Check a sweep: each value of each key is composed with the first values of the other keys.

    Args:
        verb: Verb of the jobs.
        arguments: Overrides as given, including the swept ones.

    Raises:
        ConfigError: No key is swept, or a key, a value or the sweep is invalid.
    """
    for argument in arguments:
        package = _PACKAGES.get(argument) or _PACKAGES.get(argument.partition("=")[0])
        if package:
            require_extra("sweeps", package, where=argument)
    given = parse_overrides(arguments)
    fixed = [o.input_line or "" for o in given if not o.is_sweep_override()]
    swept = [o for o in given if o.is_sweep_override()]
    recorded: list[str] = []
    is_named = any(o.startswith("run_dir=") and "${" not in o for o in fixed)
    if verb in FROM_RUN and (is_named or not any(names_run(o.key_or_group) for o in swept)):
        recorded = recorded_overrides(find_run_dir(fixed), arguments)
        fixed += recorded
    config = compose_unchecked([*fixed, *(_values(override)[0] for override in swept)])
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    swept += [
        o for o in parse_overrides([f"{k}={v}" for k, v in params.items()]) if o.is_sweep_override()
    ]
    if not swept:
        raise _nothing_swept()
    _check_compatibility(verb, config, given, swept)
    _check_values(verb, fixed, swept)
    gpus = free_gpus() if OmegaConf.select(config, "launcher.gpu_each") else []
    jobs = min(len(gpus), config.launcher.jobs) if gpus else 0
    return Plan(
        swept=tuple(o.get_key_element().lstrip("+") for o in swept),
        folder=Path(config.hydra.sweep.dir),
        gpus=tuple(gpus),
        threads=threads_of_new_sweep(config) if verb in TRAINING else default_threads(),
        extra=(*recorded, *([f"launcher.jobs={jobs}"] if gpus else [])),
    )


def first_job(verb: str, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the swept values of the first job of a sweep, and the overrides that run it alone.

    For a search, these are the first values of the lists and the lower bounds of the intervals.

    Args:
        verb: Verb of the jobs.
        arguments: Overrides as given, including the swept ones.

    Raises:
        ConfigError: No key is swept, or a key or a value is invalid.
    """
    given = parse_overrides(arguments)
    swept = [o for o in given if o.is_sweep_override()]
    if not swept:
        raise _nothing_swept()
    overrides = [_values(o)[0] if o in swept else str(o.input_line) for o in given]
    values = {o.get_key_element().lstrip("+"): _values(o)[0].partition("=")[2] for o in swept}
    if verb in TRAINING and not any(o.key_or_group == "run_dir" for o in given):
        folder = Path(compose_unchecked(overrides).hydra.sweep.dir) / folder_name(values)
        overrides += shlex.split(quote_override("run_dir", str(folder)))
    return " ".join(f"{key}={value}" for key, value in values.items()), overrides


def combinations(
    arguments: Sequence[str], *, search: bool = False
) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the keys that a sweep varies, and the overrides of each combination of their values.

    Args:
        arguments: Overrides as given, including the swept ones.
        search: Return instead what is checked of a search: each value of each key, and the bounds
            of an interval, with the first values of the other keys.

    >>> combinations(["seed=0,1", "head=arcface"])
    (('seed',), [['seed=0', 'head=arcface'], ['seed=1', 'head=arcface']])

    Raises:
        ConfigError: No key is swept, or one is an interval.
    """
    given = parse_overrides(arguments)
    swept = [o for o in given if o.is_sweep_override()]
    if not swept:
        raise _nothing_swept()
    intervals = [o.get_key_element() for o in swept if o.is_interval_sweep()]
    if intervals and not search:
        raise ConfigError(
            f"{intervals[0]} is an interval, which cannot be enumerated",
            remedy="list its values, for example head.margin=0.2,0.3, or add sweep=optuna",
        )
    lists = [_values(o) if o in swept else [str(o.input_line)] for o in given]
    keys = tuple(o.get_key_element().lstrip("+") for o in swept)
    return keys, _one_at_a_time(lists) if search else [list(values) for values in product(*lists)]


def _one_at_a_time(lists: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return each value of each list together with the first values of the others."""
    firsts = [values[0] for values in lists]
    points = [firsts]
    for number, values in enumerate(lists):
        points += [[*firsts[:number], v, *firsts[number + 1 :]] for v in values[1:_MAX_VALUES]]
    return points


def _nothing_swept() -> ConfigError:
    return ConfigError(
        "-m is given, but no key has several values",
        remedy="give a key several values, for example head.margin=0.2,0.3, or omit -m",
    )


def _check_compatibility(
    verb: str, config: DictConfig, given: Sequence[Override], swept: Sequence[Override]
) -> None:
    searching = config.sweep is not None
    intervals = [o.get_key_element() for o in swept if o.is_interval_sweep()]
    if intervals and not searching:
        raise ConfigError(
            f"{intervals[0]} is an interval, which cannot be enumerated",
            remedy="add sweep=optuna or sweep=random, which choose values in an interval",
        )
    if searching and verb not in TRAINING:
        raise ConfigError(
            f"`arcloop {verb}` has no objective, so sweep= cannot choose values",
            remedy="omit sweep=, to run every combination",
        )
    check_pruner(config)
    launcher = str(OmegaConf.select(config, "hydra.launcher._target_"))
    if launcher.endswith("SlurmLauncher") and shutil.which("srun") is None:
        raise ConfigError(
            "launcher=slurm needs Slurm, and `srun` is not on the PATH",
            remedy="run the command on a Slurm login node, or use launcher=joblib",
        )
    for override in given if verb in TRAINING else ():
        shared = not override.is_sweep_override() or len(swept) > 1
        line = str(override.input_line)
        if override.key_or_group == "run_dir" and shared and "${" not in line:
            raise ConfigError(
                f"several jobs of the sweep would write to {line}",
                remedy="set hydra.sweep.dir=, which contains one folder per job",
            )


def _check_values(verb: str, fixed: Sequence[str], swept: Sequence[Override]) -> None:
    """Check each value of each key with the first values of the others; report all faults."""
    faults = {}
    for point in _one_at_a_time([_values(override) for override in swept]):
        try:
            if verb in FROM_RUN:
                compose_for_run([*fixed, *point])
            else:
                check_config(compose_unchecked([*fixed, *point], hydra=False))
        except ConfigError as cause:
            faults[cause.what] = cause
    if len(faults) == 1:
        raise next(iter(faults.values()))
    if faults:
        raise ConfigError("\n".join(faults), remedy="correct the config; no job was started")


def _values(override: Override) -> list[str]:
    """Return the values of a sweep as overrides; for an interval, its two bounds."""
    key = override.get_key_element()
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}", f"{key}={value.end}"]
    if isinstance(value, Glob):
        names = sorted(file.stem for file in (bundled("conf") / key).glob("*.yaml"))
        return [f"{key}={name}" for name in value.filter(names)] or [f"{key}=none of these"]
    return [f"{key}={text}" for text in override.sweep_string_iterator()]
