"""Hyperparameter search: Optuna proposes values, and a Hydra launcher runs the jobs.

The study is stored in the folder of the sweep. hydra-optuna-sweeper supports Optuna 2 only; it also
restarts the trial numbers when a sweep is continued and loses the trials that were running.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from arcloop.config.value_types import NonNegativeInt, PositiveInt, checked
from arcloop.display.terminal import print_line
from arcloop.errors import ConfigError
from arcloop.pipeline.sweeps.job import FailedObjective

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STORAGE = "optuna.db"
_SPACE = "space"
_STUDY = "sweep"

Launch = Callable[..., Sequence[Any]]
"""`launch` of a Hydra launcher: overrides of each job, number of the first job -> job returns."""


@dataclass(frozen=True)
class Space:
    """The search space.

    Attributes:
        distributions: Key -> Optuna distribution of its values.
        fixed: Overrides that all jobs share.
    """

    distributions: dict[str, BaseDistribution]
    fixed: tuple[str, ...]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Space:
        """Parse overrides: `interval(...)` gives bounds, other sweeps give lists of values."""
        given = OverridesParser.create().parse_overrides(list(arguments))
        return cls(
            {o.get_key_element(): _distribution(o) for o in given if o.is_sweep_override()},
            tuple(str(o.input_line) for o in given if not o.is_sweep_override()),
        )

    def job(self, params: dict[str, Any]) -> tuple[str, ...]:
        """Return the overrides of the job with these values."""
        return (*self.fixed, *(f"{key}={params[key]}" for key in self.distributions))

    def description(self) -> dict[str, str]:
        """Return the space as text, to compare it with the space of an earlier command."""
        return {key: str(distribution) for key, distribution in self.distributions.items()}


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    low: Any = value.start
    high: Any = value.end
    log = "log" in value.tags
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


class Search:
    """Runs a given number of trials; continues an interrupted search.

    The proposal of a trial is a function of the seed, the trial number and the earlier results. So
    interrupting and continuing a search does not change its proposals.

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
        """
        import optuna
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = Space.of(arguments)
        study = self._open(Path(folder), space)
        running = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]
        broken = [t for t in running if t.params.keys() != space.distributions.keys()]
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
            jobs = [space.job(trial.params) for trial in batch]
            returned = launch(jobs, initial_job_idx=batch[0].number)
            for trial, job in zip(batch, returned, strict=True):
                _report_result(study, trial.number, job.return_value)
            batch = remaining
        _print_best(study)

    def _open(self, folder: Path, space: Space) -> Study:
        import optuna

        folder.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            study_name=_STUDY,
            storage=f"sqlite:///{folder / STORAGE}",
            direction=self._direction,
            load_if_exists=True,
        )
        before = study.user_attrs.get(_SPACE)
        if before is None:
            study.set_user_attr(_SPACE, space.description())
        elif before != space.description():
            raise ConfigError(
                "this folder contains a search over a different space",
                where=folder,
                remedy="use the space of the first command, or another folder: hydra.sweep.dir=...",
            )
        return study

    def _propose(self, study: Study, space: Space) -> list[FrozenTrial]:
        complete = [
            trial
            for trial in study.get_trials(deepcopy=False)
            if trial.params.keys() == space.distributions.keys()
        ]
        count = min(self._at_once, self._trials - len(complete))
        if count <= 0:
            return []
        # Seed with the trial number; otherwise a continued search would repeat its first draws.
        study.sampler = self._sampler(seed=crc32(f"{self._seed} {len(complete)}".encode()))
        numbers = [study.ask(space.distributions).number for _ in range(count)]
        return [study.get_trials(deepcopy=False)[number] for number in numbers]


def _report_result(study: Study, number: int, objective: Any) -> None:
    """Report the result of a trial to the study, except for a failure that will be retried."""
    from optuna.trial import TrialState

    if isinstance(objective, FailedObjective) and objective.retry:
        return
    if objective is None or not math.isfinite(objective):
        study.tell(number, state=TrialState.FAIL)
    else:
        study.tell(number, float(objective))


def _print_best(study: Study) -> None:
    from optuna.trial import TrialState

    if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        best = study.best_trial
        values = " ".join(f"{key}={value}" for key, value in best.params.items())
        print_line(f"best trial: {best.value:.4f} on val with {values}")
