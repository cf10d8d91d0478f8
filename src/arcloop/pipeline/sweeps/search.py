"""A sweep that chooses its values: optuna proposes, Hydra's launcher runs, a file remembers.

hydra-optuna-sweeper is for optuna 2; it also counts its trials anew when a sweep is continued, and
loses those that were under way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

from arcloop.config.value_types import NonNegativeInt, PositiveInt, checked
from arcloop.display.terminal import print_line
from arcloop.errors import ConfigError
from arcloop.pipeline.sweeps.job import Failed
from arcloop.pipeline.sweeps.space import Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

STORAGE = "optuna.db"
_SPACE = "space"
_STUDY = "sweep"

Launch = Callable[..., Sequence[Any]]
"""A Hydra launcher's `launch`: overrides of each job, number of the first -> their returns."""


class Search:
    """Proposes jobs until there are enough, going on with those of an interrupted sweep.

    A trial's proposal is a function of the seed, its number and the results before it, so a sweep
    that was killed and continued proposes what it would have proposed.

    Args:
        sampler: Makes the sampler from a seed.
        trials: Jobs in all.
        seed: Source of the proposals.
        direction: "max" or "min" of the objective is looked for.
        at_once: Jobs proposed, and launched, together.
    """

    @checked("sweep")
    def __init__(
        self,
        sampler: Callable[..., BaseSampler],
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
        """Search.

        Args:
            arguments: Overrides of the command.
            folder: Of the sweep, for what the search remembers.
            launch: Runs jobs.

        Raises:
            ConfigError: The folder holds a search over other values.
        """
        import optuna
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = Space.of(arguments)
        study = self._open(Path(folder), space)
        under_way = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]
        broken = [t for t in under_way if t.params.keys() != space.distributions.keys()]
        for trial in broken:  # killed while it was being proposed
            study.tell(trial.number, state=TrialState.FAIL)
        batch = [t for t in under_way if t not in broken]
        if batch or len(study.trials) > len(broken):
            print_line(f"sweep: going on, {len(study.trials) - len(under_way)} trials are done")
        while True:
            batch, later = batch[: self._at_once], batch[self._at_once :]
            batch = batch or self._propose(study, space)
            if not batch:
                break
            jobs = [space.job(trial.params) for trial in batch]
            returned = launch(jobs, initial_job_idx=batch[0].number)
            for trial, job in zip(batch, returned, strict=True):
                _tell(study, trial.number, job.return_value)
            batch = later
        _say_best(study)

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
            study.set_user_attr(_SPACE, space.described())
        elif before != space.described():
            raise ConfigError(
                "this folder holds a search over other values",
                where=folder,
                remedy="give the values it was begun with, or another folder: hydra.sweep.dir=...",
            )
        return study

    def _propose(self, study: Study, space: Space) -> list[FrozenTrial]:
        whole = [
            trial
            for trial in study.get_trials(deepcopy=False)
            if trial.params.keys() == space.distributions.keys()
        ]
        count = min(self._at_once, self._trials - len(whole))
        if count <= 0:
            return []
        # Drawn anew from the number, else a continued sweep would draw its first numbers again.
        study.sampler = self._sampler(seed=crc32(f"{self._seed} {len(whole)}".encode()))
        numbers = [study.ask(space.distributions).number for _ in range(count)]
        return [study.get_trials(deepcopy=False)[number] for number in numbers]


def _tell(study: Study, number: int, objective: Any) -> None:
    """Tell what a trial came to; one that may go better another time stays open for it."""
    from optuna.trial import TrialState

    if isinstance(objective, Failed) and objective.again:
        return
    if objective is None or not math.isfinite(objective):
        study.tell(number, state=TrialState.FAIL)
    else:
        study.tell(number, float(objective))


def _say_best(study: Study) -> None:
    from optuna.trial import TrialState

    if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        best = study.best_trial
        values = " ".join(f"{key}={value}" for key, value in best.params.items())
        print_line(f"sweep: best of val {best.value:.4f} by {values}")
