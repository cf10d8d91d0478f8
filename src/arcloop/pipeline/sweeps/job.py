"""One job of a sweep, which a Hydra launcher runs in this process, in another one, or remotely.

Its record is written to `job.json` in the folder of the job, and to a temporary folder of the
command, because launchers do not return why a job failed.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import re
import shlex
import signal
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from arcloop import artifacts
from arcloop.artifacts.atomic import sha256_json, write_json
from arcloop.config.composition import (
    check_config,
    register_schema,
    to_plain,
)
from arcloop.config.recorded import compose_for_run, find_run_dir
from arcloop.display.terminal import print_line
from arcloop.distributed.threads import restore_variable
from arcloop.errors import ArcloopError, ConfigError, DivergedError, as_user_error
from arcloop.pipeline.chains import CHAINS, FROM_RUN, VerbResult, run_verb
from arcloop.pipeline.steps import STEPS
from arcloop.pipeline.sweeps.plan import TRAINING, reserve_gpu

RECORD = "job.json"
_MAX_NAME_LENGTH = 200
_WATCHER, _WATCH_SECONDS = "arcloop-watcher", 0.2


class TemporaryFailure(float):
    """NaN, the objective of a job that a continued sweep runs again."""


class PrunedObjective(float):
    """NaN, the objective of a job that was pruned; its trial gets the state PRUNED."""


@dataclass(frozen=True)
class Failure:
    """Why a job failed.

    Attributes:
        what: The error message.
        retry: Whether a continued sweep runs the job again. Errors of the machine may be temporary;
            errors of the config are permanent.
        exit_code: Exit code of the command.
    """

    what: str
    retry: bool
    exit_code: int

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Return the failure for an error; config errors and divergence are permanent."""
        known = as_user_error(error)
        if known is None:
            return cls(f"{type(error).__name__}: {error}", retry=True, exit_code=1)
        permanent = isinstance(known, ConfigError | DivergedError)
        return cls(str(known), retry=not permanent, exit_code=known.exit_code)


@dataclass(frozen=True)
class Pruned:
    """When a pruner ended a job.

    Attributes:
        epoch: Number of completed epochs.
        value: Value of the monitored metric on val after them; of the first seed of the setting.
    """

    epoch: int
    value: float


@dataclass(frozen=True)
class JobRecord:
    """Record of a job.

    Attributes:
        config_sha256: Hash of the config groups that the result depends on.
        verb: Verb of the job.
        overrides: Overrides that the config was composed from.
        swept: Key -> value, of the keys that the sweep varies.
        started: Start time in UTC, ISO 8601.
        ended: End time in UTC, ISO 8601.
        objective: Best value of the monitored metric on val; None if nothing was trained.
        failure: Why the job failed; None if it finished or was pruned.
        run_dir: Folder of the job; older records lack it.
        gate_passed: Decision of the gate; None if nothing was evaluated.
        pruned: When a pruner ended the job; None if it was not pruned. A pruned job has no result.
    """

    config_sha256: str
    verb: str
    overrides: Sequence[str]
    swept: Mapping[str, str]
    started: str
    ended: str
    objective: float | None
    failure: Failure | None
    run_dir: str = ""
    gate_passed: bool | None = None
    pruned: Pruned | None = None

    def write(self, file: Path) -> None:
        """Write the record as JSON; missing folders are created."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(self))

    @classmethod
    def read(cls, file: Path) -> JobRecord | None:
        """Return the record in a file, or None if there is no readable record."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            content = json.loads(file.read_bytes())
            failure, pruned = content.pop("failure"), content.pop("pruned", None)
            return cls(
                **content,
                failure=None if failure is None else Failure(**failure),
                pruned=None if pruned is None else Pruned(**pruned),
            )
        return None


@dataclass(frozen=True)
class Job:
    """The task function that Hydra launchers call for each point of a sweep.

    Launchers may pickle it and run it in other processes, so results are written to files.

    Attributes:
        verb: Verb of the job.
        swept: Keys that the sweep varies; they name the folder of the job.
        results: Folder for the records of this command's jobs.
        gpus: GPUs of which the job reserves one; if empty, the visible devices are not changed.
        parent: Process id of the command.
        omp_num_threads: `OMP_NUM_THREADS` of the command. joblib sets another number in its
            processes, where `threads=auto` would otherwise differ from that of other launchers.
    """

    verb: str
    swept: tuple[str, ...]
    results: Path
    gpus: tuple[str, ...]
    parent: int
    omp_num_threads: str | None = None

    def __call__(self, config: DictConfig) -> float | None:
        """Run the job and return its objective for the sweeper; NaN if the job failed."""
        register_schema()
        if os.getppid() == self.parent:
            _exit_when_parent_ends(self.parent)
            restore_variable(self.omp_num_threads)
        settings = HydraConfig.get()
        number, overrides = settings.job.num, list(settings.overrides.task)
        swept = {key: o.partition("=")[2] for o in overrides if (key := _key(o)) in self.swept}
        if self.verb in FROM_RUN:
            config.run_dir = str(find_run_dir(overrides))
        elif not any(_key(o) == "run_dir" for o in overrides):
            old = Path(settings.sweep.dir) / _old_folder_name(swept)
            config.run_dir = str(old if old.is_dir() else old.with_name(folder_name(swept)))
        point = " ".join(f"{key}={value}" for key, value in swept.items())
        print_line(f"job {number}: {point} -> {config.run_dir}")
        record = self._attempt(config, overrides, swept)
        record.write(self.results / f"{number:09d}.json")
        if record.failure is None:
            return record.objective
        print_line(f"job {number} failed: {record.failure.what}")
        return TemporaryFailure(math.nan) if record.failure.retry else math.nan

    def _attempt(
        self, config: DictConfig, overrides: Sequence[str], swept: Mapping[str, str]
    ) -> JobRecord:
        """Run the verb and record the result; skip a job that has failed permanently."""
        file = Path(config.run_dir) / RECORD
        sha256, started = "", _now()
        outcome, failure = VerbResult(), None
        has_other_run = False  # a finished job of another config, whose record is kept
        try:
            if self.verb in FROM_RUN:
                config = compose_for_run(overrides)
            check_config(config)
            sha256 = _config_sha256(self.verb, to_plain(config))
            if self.verb in TRAINING:
                before = JobRecord.read(file)
                same = before is not None and before.config_sha256 == sha256
                failed = before.failure if before else None
                if before and failed and not failed.retry and same and not config.overwrite:
                    print_line(
                        "skipped: it failed before with this config; overwrite=true runs it again"
                    )
                    return before
                finished = failed is None if before else artifacts.exists(file.parent)
                has_other_run = finished and not same and not config.overwrite
                if not has_other_run:
                    file.unlink(missing_ok=True)
            if self.gpus:
                reserve_gpu(self.gpus)
            outcome = run_verb(self.verb, config, overrides)
        except Exception as error:  # noqa: BLE001 - one failed job must not end the sweep
            failure = Failure.of(error)
            if as_user_error(error) is None:
                print_line(traceback.format_exc())
        record = JobRecord(
            sha256, self.verb, list(overrides), dict(swept), started, _now(),
            outcome.objective, failure, config.run_dir, outcome.gate_passed,
        )  # fmt: skip
        if self.verb in TRAINING and not (failure and has_other_run):
            record.write(file)
        return record


def _config_sha256(verb: str, plain: Mapping[str, Any]) -> str:
    """Return the hash of the config groups that the result of a verb depends on."""
    reads = sorted({name for step in CHAINS[verb] for name in STEPS[step].reads})
    return sha256_json([verb, {name: plain[name] for name in reads}])


def sweep_error(records: Sequence[JobRecord], sweep: Path) -> ArcloopError | None:
    """Return the error of a sweep with failed jobs; it has the exit code of the first failure."""
    failed = [(r.run_dir, r.failure) for r in records if r.failure is not None]
    if not failed:
        return None
    run_dir, first = failed[0]
    kind = ConfigError if first.exit_code == ConfigError.exit_code else ArcloopError
    what = first.what.partition("\n")[0]
    retried = sum(failure.retry for _, failure in failed)
    remedy = "correct their config; without a change they would fail again"
    if retried:
        remedy = f"the same command runs {retried} of them again"
    if records[0].verb in TRAINING:
        remedy = f"see `arcloop leaderboard {shlex.quote(str(sweep))}`; {remedy}"
    what = f"{len(failed)} of {len(records)} jobs failed; the first error: {what}"
    return kind(what, where=run_dir, remedy=remedy)


def folder_name(swept: Mapping[str, str]) -> str:
    """Return a folder name with the swept values that needs no quotes in an override or a shell.

    Other characters than letters, digits and "_.+-" are replaced. If any are replaced, or the name
    is too long, a checksum of the values is appended.

    >>> folder_name({"head.margin": "0.2", "seed": "0"})
    'head.margin-0.2_seed-0'
    >>> folder_name({"data.root": "/a/b"})
    'data.root--a-b-734b5d72'
    """
    text = "_".join(f"{key}-{value}" for key, value in swept.items()) or "only"
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", text)
    if name == text and len(name) <= _MAX_NAME_LENGTH:
        return name
    return f"{name[: _MAX_NAME_LENGTH - 9].rstrip('-')}-{crc32(text.encode()):08x}"


def _old_folder_name(swept: Mapping[str, str]) -> str:
    """Return the folder name of earlier versions, whose sweeps can be continued."""
    point = ",".join(f"{key}={value}" for key, value in swept.items())
    name = re.sub(r"[^\w.,=+\[\]-]", "-", point) or "only"
    long = len(name) > _MAX_NAME_LENGTH
    return f"{name[: _MAX_NAME_LENGTH - 9]}-{crc32(name.encode()):08x}" if long else name


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
