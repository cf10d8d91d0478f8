"""One job of a sweep, which a Hydra launcher runs in this process, in another one, or remotely."""

from __future__ import annotations

import datetime
import math
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from arcloop import artifacts
from arcloop.config.composition import check_config, register_schema, to_plain
from arcloop.display.terminal import print_line
from arcloop.errors import as_user_error
from arcloop.pipeline.sweeps import gpus, record
from arcloop.pipeline.sweeps.record import Failure, JobRecord, SweepResults

if TYPE_CHECKING:
    from arcloop.pipeline.chains import VerbResult

TRAINING = ("train", "run")
"""Verbs whose jobs have their own folder with a record."""
_MAX_NAME_LENGTH = 200
_WATCHER, _WATCH_SECONDS = "arcloop-watcher", 0.2


class FailedObjective(float):
    """NaN, the objective of a failed job.

    Attributes:
        retry: Whether a continued sweep runs the job again.
    """

    retry: bool

    @classmethod
    def of(cls, failure: Failure) -> FailedObjective:
        """Return the objective that represents a failure."""
        objective = cls(math.nan)
        objective.retry = failure.retry
        return objective


@dataclass(frozen=True)
class Job:
    """The task function that Hydra launchers call for each point of a sweep.

    Launchers may pickle it and run it in other processes, so results are written to files.

    Attributes:
        verb: Verb of the job.
        swept: Keys that the sweep varies; they name the folder of the job.
        results: Folder for the results of this command's jobs.
        gpus: GPUs of which the job reserves one; if empty, the visible devices are not changed.
        parent: Process id of the command.
    """

    verb: str
    swept: tuple[str, ...]
    results: Path
    gpus: tuple[str, ...]
    parent: int

    def __call__(self, config: DictConfig) -> float | None:
        """Run the job and return its objective for the sweeper; NaN if the job failed."""
        register_schema()
        if os.getppid() == self.parent:
            _exit_when_parent_ends(self.parent)
        settings = HydraConfig.get()
        overrides = list(settings.overrides.task)
        swept = {key: o.partition("=")[2] for o in overrides if (key := _key(o)) in self.swept}
        point = [f"{key}={value}" for key, value in swept.items()]
        if not any(_key(o) == "run_dir" for o in overrides):
            config.run_dir = str(Path(settings.sweep.dir) / folder_name(point))
        print_line(f"job {settings.job.num}: {' '.join(point)} -> {config.run_dir}")
        outcome, failure = self._attempt(config, overrides, swept)
        if failure is not None:
            print_line(f"job {settings.job.num} failed: {failure.what}")
        gate = outcome.gate_passed if outcome else None
        SweepResults(self.results).add(settings.job.num, config.run_dir, failure, gate=gate)
        if failure is not None:
            return FailedObjective.of(failure)
        return outcome.objective if outcome else None

    def _attempt(
        self, config: DictConfig, overrides: Sequence[str], swept: Mapping[str, str]
    ) -> tuple[VerbResult | None, Failure | None]:
        """Run the verb and record the result; skip a job that has failed permanently."""
        folder = _JobFolder(Path(config.run_dir)) if self.verb in TRAINING else None
        sha256, started = "", _now()
        outcome: VerbResult | None = None
        failure: Failure | None = None
        try:
            check_config(config)
            sha256 = record.config_sha256(self.verb, to_plain(config))
            if folder is not None:
                if not config.overwrite and (before := folder.permanent_failure(sha256)):
                    print_line(
                        "skipped: it failed before with this config; overwrite=true runs it again"
                    )
                    return None, before
                folder.clear(sha256, overwrite=config.overwrite)
            if self.gpus:
                gpus.reserve_gpu(self.gpus)
            from arcloop.pipeline.chains import run_verb  # slow to import

            outcome = run_verb(self.verb, config, overrides)
        except Exception as error:  # noqa: BLE001 - one failed job must not end the sweep
            failure = Failure.of(error)
            if as_user_error(error) is None:
                print_line(traceback.format_exc())
        if folder is not None and not (failure and folder.has_other_run):
            objective = outcome.objective if outcome else None
            JobRecord(
                sha256, self.verb, list(overrides), dict(swept), started, _now(), objective, failure
            ).write(folder.path)
        return outcome, failure


class _JobFolder:
    """The folder of a job, which may contain results of an earlier command.

    Attributes:
        path: The folder.
        has_other_run: Whether it has a finished job of another config, whose record is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.has_other_run = path, False
        self._before = record.read(path)

    def permanent_failure(self, sha256: str) -> Failure | None:
        """Return the permanent failure of an earlier job with the same config, or None."""
        before = self._before
        failure = before.failure if before and before.config_sha256 == sha256 else None
        return failure if failure and not failure.retry else None

    def clear(self, sha256: str, *, overwrite: bool) -> None:
        """Remove the record of the earlier job, unless it has a finished run of another config."""
        before = self._before
        finished = before.failure is None if before else artifacts.exists(self.path)
        same = before is not None and before.config_sha256 == sha256
        self.has_other_run = finished and not same and not overwrite
        if not self.has_other_run:
            record.remove(self.path)


def folder_name(swept: Sequence[str]) -> str:
    """Return a folder name from the swept values, with characters that file systems accept.

    >>> folder_name(["head.margin=0.2", "data.root=/a/b"])
    'head.margin=0.2,data.root=-a-b'
    """
    name = re.sub(r"[^\w.,=+\[\]-]", "-", ",".join(swept)) or "only"
    return (
        name
        if len(name) <= _MAX_NAME_LENGTH
        else f"{name[: _MAX_NAME_LENGTH - 9]}-{crc32(name.encode()):08x}"
    )


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _exit_when_parent_ends(parent: int) -> None:
    """End this process when its parent, the process of the command, ends or is killed.

    Otherwise it would train in the same folder as a repeated command.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    if not any(thread.name == _WATCHER for thread in threading.enumerate()):
        threading.Thread(target=watch, name=_WATCHER, daemon=True).start()
