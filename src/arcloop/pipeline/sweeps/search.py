"""Hyperparameter search: Optuna proposes values, and a Hydra launcher runs the jobs.

The study is stored in the folder of the sweep. hydra-optuna-sweeper supports Optuna 2 only; it also
restarts the trial numbers when a sweep is continued and loses the trials that were running.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import optuna
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import StorageInternalError
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from arcloop.artifacts.atomic import try_lock
from arcloop.config.composition import parse_overrides
from arcloop.config.value_types import NonNegativeInt, PositiveInt, checked
from arcloop.display.terminal import print_line
from arcloop.errors import ConfigError, ResourceError
from arcloop.pipeline.sweeps.job import TemporaryFailure

STORAGE = "optuna.db"
_SPACE = "space"
_STUDY = "sweep"

Launch = Callable[..., Sequence[Any]]
"""`launch` of a Hydra launcher: overrides of each job, number of the first -> result of each."""


def _distribution(override: Override) -> BaseDistribution:
    """Return the distribution: `interval(...)` gives bounds, other sweeps give lists of values."""
    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    low: Any = value.start
    high: Any = value.end
    log = "log" in value.tags
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def read_space(arguments: Sequence[str]) -> dict[str, BaseDistribution]:
    """Return the distribution of each key that a sweep varies.

    Args:
        arguments: Overrides as given; those with one value are ignored.

    Raises:
        ConfigError: The values of a key have no distribution, e.g. an interval without a width.
    """
    space = {}
    for override in parse_overrides(arguments):
        if override.is_sweep_override():
            try:
                space[override.get_key_element()] = _distribution(override)
            except (ValueError, HydraException) as cause:
                raise ConfigError(
                    f"cannot choose from {override.input_line}: {cause}",
                    remedy="give a list of values, or an interval such as interval(0.2,0.6)",
                ) from cause
    return space


class Search:
    """Runs a given number of trials; continues an interrupted search.

    The proposal of a trial is a function of the seed, the trial number and the earlier results.
    Therefore, interrupting and continuing a search does not change its proposals.

    Args:
        sampler: Function that takes `seed` and returns an Optuna sampler.
        trials: Total number of trials, including those of earlier commands.
        seed: Seed of the proposals.
        direction: "max" or "min" of the objective.
        at_once: Number of trials that are proposed and launched together.
    """

    @checked("sweep")
    def __init__(
        self,
        sampler: Callable[..., Any],
        *,
        trials: PositiveInt,
        seed: NonNegativeInt,
        direction: str,
        at_once: PositiveInt,
    ) -> None:
        self._sampler, self._trials, self._seed = sampler, trials, seed
        self._at_once = at_once
        self._direction: Literal["maximize", "minimize"]
        self._direction = "maximize" if direction == "max" else "minimize"

    def run(self, arguments: Sequence[str], folder: str, launch: Launch) -> None:
        """Run the search.

        Args:
            arguments: Overrides of the command.
            folder: Folder of the sweep; it stores the study.
            launch: Runs jobs.

        Raises:
            ConfigError: The folder contains a search over a different space.
            ResourceError: Another search runs in the folder, or its record cannot be used.
        """
        storage = Path(folder) / STORAGE
        lock = try_lock(storage)
        if lock is None:
            raise ResourceError(
                "another search runs in this folder",
                where=folder,
                remedy="wait for its end, or use another folder: hydra.sweep.dir=...",
            )
        try:
            self._search(arguments, Path(folder), launch)
        except (SQLAlchemyError, StorageInternalError) as cause:
            reason = str(cause.__cause__ or cause).partition("\n")[0]
            raise ResourceError(
                f"cannot use the record of the search: {reason}",
                where=storage,
                remedy="end the programs that have it open; if it is damaged, remove it, and the"
                " search starts from its first trial",
            ) from cause
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def _search(self, arguments: Sequence[str], folder: Path, launch: Launch) -> None:
        """Run the trials, with exclusive access to the folder."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        given = parse_overrides(arguments)
        fixed = [str(o.input_line) for o in given if not o.is_sweep_override()]
        space = read_space(arguments)
        study = self._open(folder, space)
        running = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]
        broken = [t for t in running if t.params.keys() != space.keys()]
        for trial in broken:  # the command was killed while it proposed this trial
            study.tell(trial.number, state=TrialState.FAIL)
        batch = [t for t in running if t not in broken]
        if batch or len(study.trials) > len(broken):
            print_line(
                f"continuing the sweep: {len(study.trials) - len(running)} trials are finished"
            )
        while True:
            batch, remaining = batch[: self._at_once], batch[self._at_once :]
            batch = batch or self._propose(study, space)
            if not batch:
                break
            jobs = [(*fixed, *(f"{key}={t.params[key]}" for key in space)) for t in batch]
            returned = launch(jobs, initial_job_idx=batch[0].number)
            for trial, job in zip(batch, returned, strict=True):
                objective = job.return_value
                if isinstance(objective, TemporaryFailure):
                    continue  # the trial stays "running", so a continued search repeats it
                failed = objective is None or not math.isfinite(objective)
                state = TrialState.FAIL if failed else TrialState.COMPLETE
                study.tell(trial.number, None if failed else float(objective), state)
            batch = remaining
        if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            best = study.best_trial
            values = " ".join(f"{key}={value}" for key, value in best.params.items())
            print_line(f"best trial: {best.value:.4f} on val with {values}")

    def _open(self, folder: Path, space: dict[str, BaseDistribution]) -> Study:
        study = optuna.create_study(
            study_name=_STUDY,
            storage=f"sqlite:///{folder / STORAGE}",
            direction=self._direction,
            load_if_exists=True,
        )
        description = {key: str(distribution) for key, distribution in space.items()}
        before = study.user_attrs.get(_SPACE)
        if before is None:
            study.set_user_attr(_SPACE, description)
        elif before != description:
            raise ConfigError(
                "this folder contains a search over a different space",
                where=folder,
                remedy="use the space of the first command, or another folder: hydra.sweep.dir=...",
            )
        return study

    def _propose(self, study: Study, space: dict[str, BaseDistribution]) -> list[FrozenTrial]:
        complete = [
            trial
            for trial in study.get_trials(deepcopy=False)
            if trial.params.keys() == space.keys()
        ]
        count = min(self._at_once, self._trials - len(complete))
        if count <= 0:
            return []
        # Seed with the trial number; otherwise a continued search would repeat its first draws.
        study.sampler = self._sampler(seed=crc32(f"{self._seed} {len(complete)}".encode()))
        numbers = [study.ask(space).number for _ in range(count)]
        return [study.get_trials(deepcopy=False)[number] for number in numbers]
