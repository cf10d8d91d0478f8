"""The ranking of a sweep: jobs that differ only in their seed are one setting."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from arcloop.config.monitors import VAL_METRICS
from arcloop.errors import ConfigError
from arcloop.pipeline.leaderboard.comparison import SIGNIFICANCE, holm, paired_p_value
from arcloop.pipeline.leaderboard.pareto import Tradeoff
from arcloop.pipeline.leaderboard.results import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    PRUNED,
    RUNNING,
    SEED,
    SWEEP_KEYS,
    JobResult,
    read_jobs,
)
from arcloop.pipeline.leaderboard.selection import select
from arcloop.pipeline.leaderboard.setting import Setting, lower_is_better

_DECIMALS = 4  # of a printed metric


@dataclass(frozen=True)
class Ranking:
    """The jobs of a sweep and the ranking of their settings.

    Attributes:
        folder: Folder of the sweep.
        jobs: All jobs, ordered by folder name.
        keys: Varied keys, without the seed.
        settings: Jobs that differ only by their seed, best objective first. Settings that lack
            seeds follow the complete ones; those without an objective are last.
        monitor: Name of the objective, a metric of the val split.
        higher_is_better: Whether a larger objective is better.
        verb: Verb that ran the jobs.
        second: Metric of val that orders settings with the same printed objective; None if no
            settings are tied, or if no other metric differs.
    """

    folder: Path
    jobs: Sequence[JobResult]
    keys: Sequence[str]
    settings: Sequence[Setting]
    monitor: str
    higher_is_better: bool
    verb: str = "train"
    second: str | None = None

    @classmethod
    def of(cls, folder: Path, *, monitor: str | None = None, where: Sequence[str] = ()) -> Ranking:
        """Read the jobs of a sweep and rank them.

        Args:
            folder: Folder of the sweep.
            monitor: Metric of val to rank by; None for the monitor of the jobs.
            where: Conditions such as "seed>1" that jobs must meet.

        Raises:
            ArtifactError: The folder contains no jobs, or a run in it is damaged.
            ConfigError: The jobs have different monitors, no job recorded `monitor`, or a
                condition is invalid.
        """
        return cls.of_jobs(folder, select(read_jobs(folder), where), monitor=monitor)

    @classmethod
    def of_jobs(
        cls,
        folder: Path,
        jobs: Sequence[JobResult],
        verb: str = "train",
        *,
        monitor: str | None = None,
    ) -> Ranking:
        """Rank the jobs of a sweep."""
        monitor, higher_is_better = _find_monitor(folder, jobs, monitor)
        jobs = [dataclasses.replace(job, objective=job.value_of(monitor)) for job in jobs]
        keys = [key for key in _varied_keys(jobs) if key != SEED]
        groups: dict[tuple[str | None, ...], list[JobResult]] = {}
        for job in jobs:
            groups.setdefault(tuple(job.value(key) for key in keys), []).append(job)
        # Settings may have more seeds that were added later: expect the most frequent number.
        counts = Counter(map(len, groups.values()))
        seeds = max(counts, key=lambda count: (counts[count], count), default=0)
        settings = [
            Setting.of(dict(zip(keys, v, strict=True)), g, seeds) for v, g in groups.items()
        ]
        sign = -1 if higher_is_better else 1
        settings.sort(key=lambda setting: _order(setting, sign))
        second = _second_metric(settings, monitor)
        settings.sort(key=lambda setting: _order(setting, sign, second))
        return cls(folder, jobs, keys, settings, monitor, higher_is_better, verb, second)

    @property
    def best(self) -> Setting | None:
        """The first setting; None if no job finished."""
        found = next(iter(self.settings), None)
        return found if found is not None and found.objective is not None else None

    @cached_property
    def tradeoff(self) -> Tradeoff | None:
        """The objectives of a search with several objectives; None for other sweeps."""
        finished = [[j for j in s.jobs if j.state == FINISHED] for s in self.settings]
        return Tradeoff.of([[job.objectives for job in jobs] for jobs in finished])

    @property
    def best_job(self) -> JobResult | None:
        """The job of the best setting that has the best objective."""
        if self.best is None:
            return None
        sign = 1 if self.higher_is_better else -1
        jobs = [job for job in self.best.jobs if job.state == FINISHED]
        return max(jobs, key=lambda job: sign * (job.objective or 0.0))

    @property
    def on_runs(self) -> bool:
        """Whether the jobs started from finished runs, so that there is no objective on val."""
        return any(job.on_run for job in self.jobs)

    @property
    def failed(self) -> list[JobResult]:
        """Jobs that failed or were interrupted."""
        return [job for job in self.jobs if job.state in (FAILED, INTERRUPTED)]

    @property
    def pruned(self) -> list[JobResult]:
        """Jobs that a pruner ended."""
        return [job for job in self.jobs if job.state == PRUNED]

    @property
    def running(self) -> list[JobResult]:
        """Jobs that are running now."""
        return [job for job in self.jobs if job.state == RUNNING]

    @property
    def shown(self) -> list[int]:
        """Positions of the settings for a table: those with a job neither pruned nor running."""
        apart = (PRUNED, RUNNING)
        return [n for n, s in enumerate(self.settings) if any(j.state not in apart for j in s.jobs)]

    @cached_property
    def ranks(self) -> list[str]:
        """The rank of each setting; "=" follows a rank that several settings share."""
        order = [_printed_order(setting) for setting in self.settings]
        ranks = [str(order.index(place) + 1) for place in order]
        return [
            "" if setting.objective is None else f"{rank}=" if ranks.count(rank) > 1 else rank
            for setting, rank in zip(self.settings, ranks, strict=True)
        ]

    @property
    def tied(self) -> list[Setting]:
        """The settings with the printed objective of the best one; empty if it is the only one."""
        found = [s for s, rank in zip(self.settings, self.ranks, strict=True) if rank == "1="]
        return found if len(found) > 1 else []

    @cached_property
    def p_values(self) -> dict[int, float]:
        """Position of a setting -> p value of its difference from the best one.

        Paired t test over shared seeds, with Holm's correction for the number of settings. Only
        settings that share two seeds with the best one are tested.
        """
        if self.best is None:
            return {}
        best = self.best.by_seed()
        found = {
            place: p
            for place, setting in enumerate(self.settings)
            if place and (p := paired_p_value(best, setting.by_seed())) is not None
        }
        return dict(zip(found, holm(list(found.values())), strict=True))

    def is_like_best(self, place: int) -> bool:
        """Return whether the test does not distinguish a setting from the best one."""
        return self.p_values.get(place, 0.0) >= SIGNIFICANCE


def _find_monitor(folder: Path, jobs: Sequence[JobResult], monitor: str | None) -> tuple[str, bool]:
    """Return the metric to rank by, and whether a larger value is better."""
    used = Counter(
        (str(job.config["monitor"]), str(job.config.get("monitor_mode", "max")))
        for job in jobs
        if "monitor" in job.config
    )
    modes = {mode for name, mode in used if name == monitor}
    if monitor is not None:
        if all(job.value_of(monitor) is None for job in jobs):
            known = sorted({name for job in jobs for name in job.val})
            raise ConfigError(
                f"no job recorded {monitor} on val",
                where="--monitor",
                remedy=f"recorded metrics of val: {', '.join(known) or 'none'}",
            )
        return monitor, modes == {"max"} or (len(modes) != 1 and not lower_is_better(monitor))
    if len(used) > 1:
        names = ", ".join(f"{name} ({mode}) in {n} jobs" for (name, mode), n in used.items())
        common = [n for n in VAL_METRICS if all(n in j.val for j in jobs if j.state == FINISHED)]
        raise ConfigError(
            f"the jobs of this folder have different monitors: {names}",
            where=folder,
            remedy="rank them by one metric of val that all of them recorded: --monitor"
            f" {common[0] if common else 'KEY'}",
        )
    name, mode = next(iter(used), ("objective", "max"))
    return name, mode != "min"


def _printed_order(setting: Setting) -> tuple[bool, bool, float]:
    """Return the sort key of a setting without a second metric; equal for tied settings."""
    mean = round(setting.objective.mean, _DECIMALS) if setting.objective else 0.0
    return setting.objective is None, setting.missing > 0, mean


def _order(setting: Setting, sign: int, second: str | None = None) -> tuple[float, ...]:
    without, incomplete, mean = _printed_order(setting)
    exact = setting.objective.mean if setting.objective else 0.0
    other = 0.0
    if second is not None and second in setting.val:
        other = (1 if lower_is_better(second) else -1) * setting.val[second].mean
    return without, incomplete, sign * mean, other, sign * exact


def _second_metric(settings: Sequence[Setting], monitor: str) -> str | None:
    """Return the metric that orders tied settings: the first in which some of them differ."""
    groups: dict[tuple[bool, bool, float], list[Setting]] = {}
    for setting in settings:
        if setting.objective is not None:
            groups.setdefault(_printed_order(setting), []).append(setting)
    tied = next((group for group in groups.values() if len(group) > 1), [])
    known = dict.fromkeys([*VAL_METRICS, *(tied[0].val if tied else ())])
    names = [n for n in known if n != monitor and tied and all(n in s.val for s in tied)]
    return next((n for n in names if len({f"{s.val[n].mean:.4f}" for s in tied}) > 1), None)


def _varied_keys(jobs: Sequence[JobResult]) -> list[str]:
    """Return the keys whose values differ between jobs, in the order of the command line."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    of_runs = {key for job in jobs if job.on_run for key in job.swept}  # also run_dir
    return [
        key
        for key in keys
        if not key.startswith(SWEEP_KEYS if key not in of_runs else ())
        and len({job.value(key) for job in jobs}) > 1
    ]
