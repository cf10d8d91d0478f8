"""A sweep before its first job: what it varies, where it writes, and whether all of it is right."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from arcloop.config.composition import as_config_error, bundled, check_config, compose_unchecked
from arcloop.errors import ConfigError
from arcloop.pipeline.sweeps.gpus import free_gpus
from arcloop.pipeline.sweeps.job import TRAINING

_MOST_VALUES = 32
"""Values of one key that are checked before the first job; the rest is when its turn comes."""


@dataclass(frozen=True)
class Plan:
    """A sweep that may start.

    Attributes:
        swept: Keys that it varies.
        folder: Where its jobs have their folders.
        gpus: GPUs to spread the jobs over; (): leave them what they see.
        extra: Overrides that follow from the machine.
    """

    swept: tuple[str, ...]
    folder: Path
    gpus: tuple[str, ...]
    extra: tuple[str, ...]


def plan(verb: str, arguments: Sequence[str]) -> Plan:
    """Check a sweep as a whole: every value of every key, in a config with the others' first.

    Args:
        verb: What each job does.
        arguments: Overrides as given, with those of the sweep.

    Raises:
        ConfigError: It varies nothing, or a value, a key or the sweep itself is wrong.
    """
    _require_extra(arguments)
    given = _parse(arguments)
    fixed = [o.input_line or "" for o in given if not o.is_sweep_override()]
    swept = [o for o in given if o.is_sweep_override()]
    config = compose_unchecked([*fixed, *(_values(override)[0] for override in swept)])
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    swept += [o for o in _parse([f"{k}={v}" for k, v in params.items()]) if o.is_sweep_override()]
    if not swept:
        raise ConfigError(
            "-m, but nothing to sweep",
            remedy="give a key several values, as in head.margin=0.2,0.3, or leave out -m",
        )
    _refuse_mismatch(verb, config, swept, fixed)
    check_config(_without_hydra(config))
    _check_other_values(fixed, swept)
    gpus = free_gpus() if OmegaConf.select(config, "launcher.gpu_each") else []
    jobs = min(len(gpus), config.launcher.jobs) if gpus else 0
    return Plan(
        swept=tuple(o.get_key_element().lstrip("+") for o in swept),
        folder=Path(config.hydra.sweep.dir),
        gpus=tuple(gpus),
        extra=(f"launcher.jobs={jobs}",) if gpus else (),
    )


def _parse(arguments: Sequence[str]) -> list[Override]:
    try:
        return list(OverridesParser.create().parse_overrides(list(arguments)))
    except HydraException as cause:
        raise as_config_error(cause) from None


def _require_extra(arguments: Sequence[str]) -> None:
    needs = {"sweep": "optuna", "launcher=joblib": "hydra_plugins.hydra_joblib_launcher",
             "launcher=gpus": "hydra_plugins.hydra_joblib_launcher",
             "launcher=slurm": "hydra_plugins.hydra_submitit_launcher"}  # fmt: skip
    for argument in arguments:
        package = needs.get(argument) or needs.get(argument.partition("=")[0])
        if package and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{argument} needs a package that is not installed: {package}",
                remedy="pip install 'arcloop[sweeps]'",
            )


def _refuse_mismatch(
    verb: str, config: DictConfig, swept: Sequence[Override], fixed: Sequence[str]
) -> None:
    searching = config.sweep is not None
    intervals = [o.get_key_element() for o in swept if o.is_interval_sweep()]
    if intervals and not searching:
        raise ConfigError(
            f"{intervals[0]} has an interval, of which there is no list to go through",
            remedy="sweep=optuna or sweep=random chooses values in it",
        )
    if searching and verb not in TRAINING:
        raise ConfigError(
            f"`arcloop {verb}` has no objective that sweep= could choose values by",
            remedy="leave out sweep=: every combination is done",
        )
    launcher = str(OmegaConf.select(config, "hydra.launcher._target_"))
    if launcher.endswith("SlurmLauncher") and shutil.which("srun") is None:
        raise ConfigError(
            "launcher=slurm, but there is no Slurm here: no `srun` on the PATH",
            remedy="run it where jobs are submitted, or use launcher=joblib",
        )
    for override in fixed if verb in TRAINING else ():
        if override.startswith("run_dir=") and "${" not in override:
            raise ConfigError(
                f"all jobs of the sweep would write to the same {override}",
                remedy="hydra.sweep.dir= is the folder that holds a folder for each",
            )


def _without_hydra(config: DictConfig) -> DictConfig:
    plain = config.copy()
    with open_dict(plain):
        del plain["hydra"]
    return plain


def _check_other_values(fixed: Sequence[str], swept: Sequence[Override]) -> None:
    """Compose and check once for each value but the first; tell what is wrong of all together."""
    firsts = [_values(override)[0] for override in swept]
    faults = {}
    for number, override in enumerate(swept):
        for value in _values(override)[1:_MOST_VALUES]:
            point = [*firsts[:number], value, *firsts[number + 1 :]]
            try:
                check_config(compose_unchecked([*fixed, *point], hydra=False))
            except ConfigError as cause:
                faults[cause.what] = cause
    if len(faults) == 1:
        raise next(iter(faults.values()))
    if faults:
        raise ConfigError("\n".join(faults), remedy="correct the config; nothing was started")


def _values(override: Override) -> list[str]:
    """Return the values of a sweep as overrides; of an interval, its two ends."""
    key = override.get_key_element()
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}", f"{key}={value.end}"]
    if isinstance(value, Glob):
        names = sorted(file.stem for file in (bundled("conf") / key).glob("*.yaml"))
        return [f"{key}={name}" for name in value.filter(names)] or [f"{key}=none of these"]
    return [f"{key}={text}" for text in override.sweep_string_iterator()]
