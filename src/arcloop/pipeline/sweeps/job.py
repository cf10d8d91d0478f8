"""One job of a sweep: in this process, another one, or on another machine."""

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
from arcloop.pipeline.sweeps.record import Failure, JobRecord, Outcomes

if TYPE_CHECKING:
    from arcloop.pipeline.chain import Outcome

TRAINING = ("train", "run")
"""Verbs whose jobs have a folder of their own, and in it a record."""
_LONGEST_NAME = 200
_WATCHER, _WATCH_SECONDS = "arcloop-watcher", 0.2


class Failed(float):
    """The objective of a job that failed: not a number.

    Attributes:
        again: Whether it may go better another time.
    """

    again: bool

    @classmethod
    def of(cls, failure: Failure) -> Failed:
        """Return the objective that stands for a failure."""
        objective = cls(math.nan)
        objective.again = failure.again
        return objective


@dataclass(frozen=True)
class Job:
    """What Hydra's launchers call for each point of a sweep.

    It is pickled where jobs run in other processes, so what they came to is told in files.

    Attributes:
        verb: What to do.
        swept: Keys that the sweep varies; they name the job's folder.
        outcomes: Folder for what the jobs of this command come to.
        gpus: Give the job's process one of these; (): leave it what it sees.
        parent: Process of the command.
    """

    verb: str
    swept: tuple[str, ...]
    outcomes: Path
    gpus: tuple[str, ...]
    parent: int

    def __call__(self, config: DictConfig) -> float | None:
        """Do the job, and return its objective for the sweeper: of a failed one, not a number."""
        register_schema()
        if os.getppid() == self.parent:
            _end_with(self.parent)
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
        Outcomes(self.outcomes).add(settings.job.num, config.run_dir, failure, gate=gate)
        if failure is not None:
            return Failed.of(failure)
        return outcome.objective if outcome else None

    def _attempt(
        self, config: DictConfig, overrides: Sequence[str], swept: Mapping[str, str]
    ) -> tuple[Outcome | None, Failure | None]:
        """Execute the verb, unless it failed for good before; record how it ends."""
        slot = _Slot(Path(config.run_dir)) if self.verb in TRAINING else None
        sha256, started = "", _now()
        outcome: Outcome | None = None
        failure: Failure | None = None
        try:
            check_config(config)
            sha256 = record.config_sha256(self.verb, to_plain(config))
            if slot is not None:
                if not config.overwrite and (before := slot.failed_for_good(sha256)):
                    print_line(
                        "this job failed before with the same config; overwrite=true repeats it"
                    )
                    return None, before
                slot.clear(sha256, overwrite=config.overwrite)
            if self.gpus:
                gpus.claim(self.gpus)
            from arcloop.pipeline.chain import execute  # not before the config is known to be good

            outcome = execute(self.verb, config, overrides)
        except Exception as error:  # noqa: BLE001 - whatever it is, the sweep goes on
            failure = Failure.of(error)
            if as_user_error(error) is None:
                print_line(traceback.format_exc())
        if slot is not None and not (failure and slot.of_another):
            objective = outcome.objective if outcome else None
            JobRecord(
                sha256, self.verb, list(overrides), dict(swept), started, _now(), objective, failure
            ).write(slot.folder)
        return outcome, failure


class _Slot:
    """The folder of a job, which may hold what an earlier command left there.

    Attributes:
        folder: Its path.
        of_another: A finished job of another config is there, whose record must stay.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.of_another = folder, False
        self._before = record.read(folder)

    def failed_for_good(self, sha256: str) -> Failure | None:
        """Return why this very job failed before, if it would fail again."""
        before = self._before
        failure = before.failure if before and before.config_sha256 == sha256 else None
        return failure if failure and not failure.again else None

    def clear(self, sha256: str, *, overwrite: bool) -> None:
        """Remove the record of a job that is done anew."""
        before = self._before
        finished = before.failure is None if before else artifacts.exists(self.folder)
        same = before is not None and before.config_sha256 == sha256
        self.of_another = finished and not same and not overwrite
        if not self.of_another:
            record.remove(self.folder)


def folder_name(swept: Sequence[str]) -> str:
    """Name a job's folder by what the sweep varies, as a file system takes it.

    >>> folder_name(["head.margin=0.2", "data.root=/a/b"])
    'head.margin=0.2,data.root=-a-b'
    """
    name = re.sub(r"[^\w.,=+\[\]-]", "-", ",".join(swept)) or "only"
    return (
        name
        if len(name) <= _LONGEST_NAME
        else f"{name[: _LONGEST_NAME - 9]}-{crc32(name.encode()):08x}"
    )


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _end_with(parent: int) -> None:
    """End this process when the command's has ended, be it killed.

    Else it would train on, in the folder that the same command, given again, goes on in.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    if not any(thread.name == _WATCHER for thread in threading.enumerate()):
        threading.Thread(target=watch, name=_WATCHER, daemon=True).start()
