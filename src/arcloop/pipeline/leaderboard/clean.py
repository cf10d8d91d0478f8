"""`arcloop clean SWEEP_DIR`: remove models and checkpoints of jobs that are not among the best.

Config, metrics, evaluation and record of every job stay, so the leaderboard remains complete, and a
continued sweep does not repeat the jobs. Jobs that it would continue are not cleaned.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from arcloop.artifacts import CLEANED, without_link
from arcloop.artifacts.atomic import try_lock, write_json
from arcloop.display.terminal import result_console
from arcloop.errors import ConfigError, ResourceError, write_error
from arcloop.pipeline.leaderboard.best import BEST
from arcloop.pipeline.leaderboard.ranking import Ranking
from arcloop.pipeline.leaderboard.results import FAILED, INTERRUPTED, RUNNING, JobResult
from arcloop.pipeline.sweeps.record import RECORD, JobRecord

_REMOVED = ("model.pt", "golden.npz", "checkpoints", "gallery", "index", "export", "other_data")


def clean(arguments: Sequence[str]) -> int:
    """Print the sizes of the files to remove, and remove them with `--yes`; return 0.

    Raises:
        ConfigError: An option is invalid, the jobs have different monitors, or none is finished.
        ArtifactError: The folder contains no jobs of a sweep.
        ResourceError: A job is running, or a file cannot be removed.
    """
    parser = argparse.ArgumentParser("arcloop clean", description=__doc__)
    parser.add_argument("sweep_dir", metavar="SWEEP_DIR", help="e.g. runs/sweeps/mnist")
    parser.add_argument(
        "--keep", metavar="best|top=N", default="best",
        help="settings to keep, with the jobs of all their seeds (default: best)",
    )  # fmt: skip
    parser.add_argument("--monitor", metavar="KEY", help="rank by another recorded metric of val")
    parser.add_argument("--yes", action="store_true", help="remove the files")
    options = parser.parse_args(arguments)
    ranking = Ranking.of(Path(options.sweep_dir), monitor=options.monitor)
    if ranking.best is None:
        raise ConfigError(
            "no job of this folder has a value by which the jobs to keep can be chosen",
            where=ranking.folder,
            remedy="pass a sweep of `arcloop train -m` or `arcloop run -m` with a finished job",
        )
    jobs = _to_clean(ranking, _count(options.keep))
    sizes = {job.folder: _size(job.folder) for job in jobs}
    sizes = {folder: size for folder, size in sizes.items() if size}
    console = result_console()
    verb = "freed" if options.yes else "would free"
    with ExitStack() as locks:
        for job in ranking.jobs:
            _lock(job, locks)
        for folder, size in sizes.items():
            if options.yes:
                _remove(folder)
            console.print(f"{verb} {size / 2**20:,.1f} MiB: {folder}", soft_wrap=True)
    total = f"{sum(sizes.values()) / 2**20:,.1f} MiB in {len(sizes)} of {len(ranking.jobs)} jobs"
    ending = "" if options.yes or not sizes else "; add --yes to remove the files"
    console.print(f"{verb} {total}{ending}", soft_wrap=True)
    return 0


def _count(keep: str) -> int:
    """Return the number of settings to keep."""
    found = re.fullmatch(r"best|top=([1-9]\d*)", keep)
    if found is None:
        raise ConfigError(
            f"--keep {keep!r} is neither best nor top=N", remedy="use --keep best or --keep top=3"
        )
    return int(found[1] or 1)


def _to_clean(ranking: Ranking, count: int) -> list[JobResult]:
    """Return the jobs to clean: those of other settings that the sweep does not continue."""
    ranked = [setting for setting in ranking.settings if setting.objective is not None]
    kept = {job.folder for setting in ranked[:count] for job in setting.jobs}
    kept.add(without_link(ranking.folder / BEST))
    return [
        job
        for job in ranking.jobs
        if job.folder not in kept and job.state not in (RUNNING, INTERRUPTED) and not _retried(job)
    ]


def _retried(job: JobResult) -> bool:
    record = JobRecord.read(job.folder / RECORD) if job.state == FAILED else None
    return record is not None and record.failure is not None and record.failure.retry


def _lock(job: JobResult, locks: ExitStack) -> None:
    """Lock the folder of a job until the end of the command, so that no training starts in it."""
    lock = try_lock(job.folder)
    if lock is None:
        raise ResourceError(
            "a job of this sweep is running",
            where=job.folder,
            remedy="wait until the sweep ends; nothing was removed",
        )
    locks.callback(lock.release)
    locks.callback(Path(lock.lock_file).unlink, missing_ok=True)


def _files(folder: Path) -> list[Path]:
    paths = [folder / name for name in _REMOVED]
    return [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]


def _size(folder: Path) -> int:
    """Return the bytes of the files to remove; a file with two names is counted once."""
    states = {(s.st_dev, s.st_ino): s.st_size for s in map(os.stat, _files(folder))}
    return sum(states.values())


def _remove(folder: Path) -> None:
    """Remove the files of a job. The record is written first, so that it can be continued."""
    try:
        write_json(folder / CLEANED, {"removed": list(_REMOVED)})
        for name in _REMOVED:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as cause:
        raise write_error(folder, cause) from cause
