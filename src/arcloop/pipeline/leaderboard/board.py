"""All that a leaderboard shows, whatever it is shown as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arcloop.pipeline.leaderboard.jobs import Job, read_jobs
from arcloop.pipeline.leaderboard.settings import Setting, settings_of

_COLUMNS = ("top1", "recall_at_5", "map_at_r", "eer", "tar_at_far_1e-3")


@dataclass(frozen=True)
class Board:
    """The jobs of a sweep, ranked.

    Attributes:
        folder: Of the sweep.
        jobs: Every one, by its folder's name.
        keys: What varies, seeds apart.
        settings: The best by the objective first.
        monitor: Name of the objective, a metric of val.
    """

    folder: Path
    jobs: Sequence[Job]
    keys: Sequence[str]
    settings: Sequence[Setting]
    monitor: str

    @classmethod
    def of(cls, folder: Path) -> Board:
        """Read the jobs of a sweep and rank them.

        Raises:
            ArtifactError: There are none.
        """
        jobs = read_jobs(folder)
        keys, settings = settings_of(jobs)
        monitors = [job.monitor for job in jobs if job.monitor]
        return cls(folder, jobs, keys, settings, monitors[0] if monitors else "objective")

    @property
    def failed(self) -> list[Job]:
        """Jobs without a result."""
        return [job for job in self.jobs if job.failure is not None]

    @property
    def columns(self) -> list[str]:
        """Metrics of query that are shown, of those that there are."""
        return [n for n in _COLUMNS if any(n in setting.metrics for setting in self.settings)]

    @property
    def facts(self) -> list[str]:
        """What all finished jobs have in common and a reader of numbers wants to know."""
        runs = [job for job in self.jobs if job.config]
        if not runs:
            return []

        def all_of(values: Sequence[object]) -> str:
            return ", ".join(sorted({str(value) for value in values}))

        trainers = [job.config["trainer"] for job in runs]
        return [
            f"data: {all_of([job.config['data']['name'] for job in runs])}",
            f"epochs: {all_of([trainer['max_epochs'] for trainer in trainers])}",
            f"device: {all_of([trainer['accelerator'] for trainer in trainers])}, "
            + all_of([trainer["precision"] for trainer in trainers]),
            f"torch: {all_of([job.code['packages'].get('torch') for job in runs])}",
            f"git: {all_of([str(job.code['git'])[:10] for job in runs])}",
        ]
