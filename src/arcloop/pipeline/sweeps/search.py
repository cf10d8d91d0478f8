"""A search: trials whose parameters Optuna proposes, and whose jobs a Hydra launcher runs.

The study is stored in the folder of the sweep. hydra-optuna-sweeper is not used: it supports Optuna
2 only, restarts the trial numbers when a sweep is continued, and loses trials that were running.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any
from zlib import crc32

import optuna
from optuna.exceptions import StorageInternalError
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from arcloop.artifacts.atomic import try_lock
from arcloop.config.restrictions import one_of
from arcloop.config.value_types import NonNegativeInt, PositiveInt, checked
from arcloop.display.terminal import print_line
from arcloop.errors import ConfigError, ResourceError
from arcloop.pipeline.sweeps.job import PrunedObjective, TemporaryFailure
from arcloop.pipeline.sweeps.objectives import Objective, read_objectives, summarize
from arcloop.pipeline.sweeps.proposals import Proposals, make_sampler
from arcloop.pipeline.sweeps.pruning import STORAGE
from arcloop.pipeline.sweeps.space import Space
from arcloop.pipeline.sweeps.study import fixed_values, open_study

Launch = Callable[..., Sequence[Any]]
"""`launch` of a Hydra launcher: overrides of each job, number of the first -> result of each."""


class Search:
    """Runs a given number of trials; continues an interrupted search.

    A trial runs one job for each seed. Number of a job = number of the trial * number of seeds +
    index of the seed. The proposal of a trial is a function of the seed, the trial number and the
    earlier results. Therefore, interrupting and continuing a search does not change its proposals.

    Args:
        sampler: Function that takes `seed` and returns an Optuna sampler; None runs every
            combination once.
        trials: Total number of trials, including those of earlier commands; None with `sampler`
            None.
        seed: Seed of the proposals.
        objective: How the values of the seeds of a trial are combined, see `summarize`.
        objectives: Several objectives, see `read_objectives`; None or empty for `monitor` alone.
        zip: Keys that vary together.
        monitor: Metric on val, the objective of a job.
        direction: "max" or "min" of the monitor.
        at_once: Number of jobs that run in parallel; as many trials are proposed together.
    """

    @checked("sweep")
    def __init__(
        self,
        sampler: Callable[..., Any] | None = None,
        *,
        trials: PositiveInt | None = None,
        seed: NonNegativeInt,
        objective: Annotated[str, one_of("mean", "lower")],
        objectives: list[Any] | None = None,
        zip: list[Any] | None = None,  # noqa: A002 - the name of the key
        monitor: str,
        direction: str,
        at_once: PositiveInt,
    ) -> None:
        self._sampler, self._trials, self._seed = sampler, trials, seed
        self._how, self._zip, self._at_once = objective, zip or [], at_once
        self._several = read_objectives(objectives)
        self._monitor = Objective(monitor, direction)

    @property
    def _objectives(self) -> tuple[Objective, ...]:
        return self._several or (self._monitor,)

    def run(self, verb: str, arguments: Sequence[str], folder: str, launch: Launch) -> None:
        """Run the search.

        Args:
            verb: Verb of the jobs.
            arguments: Overrides of the command.
            folder: Folder of the sweep; it stores the study.
            launch: Runs jobs.

        Raises:
            ConfigError: The space is invalid, or the folder contains a search with other settings.
            ResourceError: Another search runs in the folder, or its record cannot be used.
        """
        space = Space.of(arguments).zipped(self._zip)
        proposals = self.check(space)
        storage = Path(folder) / STORAGE
        lock = try_lock(storage)
        if lock is None:
            raise ResourceError(
                "another search runs in this folder",
                where=folder,
                remedy="wait for its end, or use another folder: hydra.sweep.dir=...",
            )
        settings = {
            "verb": verb,
            "monitor": self._monitor.name,
            "direction": self._monitor.direction,
            "objectives": {one.name: one.direction for one in self._several},
            "objective": self._how,
            "seeds": [seed.partition("=")[2] for seed in proposals.seeds],
            "fixed": fixed_values(space.fixed),
            "space": proposals.describe(),
        }
        try:
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            directions = [objective.direction for objective in self._objectives]
            study = open_study(Path(folder), settings, directions)
            self._search(study, proposals, launch)
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

    def check(self, space: Space) -> Proposals:
        """Return the proposals of a space.

        Raises:
            ConfigError: The search cannot choose from the values.
        """
        proposals = Proposals(space)
        if self._how == "lower" and len(proposals.seeds) < 2:
            raise ConfigError(
                "sweep.objective=lower needs at least 2 seeds for an interval",
                remedy="give several seeds, such as seed=0,1,2, or use sweep.objective=mean",
            )
        return proposals

    def _search(self, study: Study, proposals: Proposals, launch: Launch) -> None:
        """Run the trials, with exclusive access to the folder."""
        running = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]
        broken = [t for t in running if not proposals.is_complete(t.params)]
        for trial in broken:  # the command was killed while it proposed this trial
            study.tell(trial.number, state=TrialState.FAIL)
        batch = [t for t in running if t not in broken]
        if batch or len(study.trials) > len(broken):
            print_line(
                f"continuing the sweep: {len(study.trials) - len(running)} trials are finished"
            )
        seeds = len(proposals.seeds)
        at_once = max(1, self._at_once // seeds)
        while True:
            batch, remaining = batch[:at_once], batch[at_once:]
            batch = batch or self._propose(study, proposals, at_once)
            if not batch:
                break
            # Equal trials would train in the same folder at the same time: only the first one runs.
            names = {trial.number: " ".join(proposals.overrides(trial.params)) for trial in batch}
            distinct = {names[trial.number]: trial for trial in reversed(batch)}
            results: dict[str, list[Any]] = {}
            for trials in _consecutive(list(distinct.values())):
                jobs = [job for trial in trials for job in proposals.jobs(trial.params)]
                returned = launch(jobs, initial_job_idx=trials[0].number * seeds)
                for place, trial in enumerate(trials):
                    of_trial = returned[place * seeds : (place + 1) * seeds]
                    results[names[trial.number]] = [job.return_value for job in of_trial]
            for trial in batch:
                self._tell(study, trial.number, results[names[trial.number]])
            batch = remaining
        if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            self._print_best(study, proposals)

    def _tell(self, study: Study, trial: int, results: Sequence[Any]) -> None:
        """Record a trial, given what its jobs returned: the objectives, or why there are none."""
        if any(isinstance(result, PrunedObjective) for result in results):
            study.tell(trial, state=TrialState.PRUNED)
            return
        temporary = [isinstance(result, TemporaryFailure) for result in results]
        values = [result if isinstance(result, list) else [result] for result in results]
        usable = [all(v is not None and math.isfinite(v) for v in one) for one in values]
        if all(usable):
            summaries = [
                summarize(of_seeds, self._how, objective.direction)
                for objective, of_seeds in zip(
                    self._objectives, zip(*values, strict=True), strict=True
                )
            ]
            study.tell(trial, summaries)
        elif all(good or later for good, later in zip(usable, temporary, strict=True)):
            return  # the trial stays "running", so a continued search repeats it
        else:
            study.tell(trial, state=TrialState.FAIL)

    def _propose(self, study: Study, proposals: Proposals, count: int) -> list[FrozenTrial]:
        found = study.get_trials(deepcopy=False)
        done = sum(proposals.is_complete(trial.params) for trial in found)
        if self._sampler is None:
            for params in proposals.combinations()[done : done + count]:
                distributions = {name: proposals.distributions[name] for name in params}
                study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.RUNNING, params=params, distributions=distributions
                    )
                )
        else:
            # Seed with the trial number; otherwise a continued search would repeat its first draws.
            study.sampler = make_sampler(self._sampler, crc32(f"{self._seed} {done}".encode()))
            for _ in range(min(count, (self._trials or 0) - done)):
                proposals.ask(study)
        return study.get_trials(deepcopy=False)[len(found) :]

    def _print_best(self, study: Study, proposals: Proposals) -> None:
        values = {t.number: " ".join(proposals.overrides(t.params)) for t in study.best_trials}
        if not self._several:  # the leaderboard ranks by the mean
            best = study.best_trial
            if self._how == "lower":
                text = values[best.number]
                print_line(f"best trial by the end of its interval: {best.value:.4f} with {text}")
            return
        print_line("Pareto-optimal: no other trial is better in one objective and worse in none")
        distinct = {values[trial.number]: trial for trial in reversed(study.best_trials)}
        for text, trial in sorted(distinct.items(), key=lambda item: item[1].values):
            figures = zip(self._several, trial.values, strict=True)
            scores = ", ".join(f"{one.name} {value:.6g}" for one, value in figures)
            print_line(f"trial {trial.number}: {scores} with {text}")


def _consecutive(trials: Sequence[FrozenTrial]) -> Iterator[list[FrozenTrial]]:
    """Divide trials into groups of consecutive numbers, which launchers need."""
    group: list[FrozenTrial] = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        if group and trial.number != group[-1].number + 1:
            yield group
            group = []
        group.append(trial)
    yield group
