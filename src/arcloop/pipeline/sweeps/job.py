"""One job of a sweep, which a Hydra launcher runs in this process, in another one, or remotely.

Its record is written to `job.json` in the folder of the job, and to a temporary folder of the
command, because launchers do not return why a job failed.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import re
import shlex
import signal
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from arcloop import artifacts
from arcloop.artifacts import JOB_LOG
from arcloop.artifacts.atomic import sha256_json
from arcloop.config.composition import (
    check_config,
    register_schema,
    to_plain,
)
from arcloop.config.origin import set_origin
from arcloop.config.overrides import key_of
from arcloop.config.recorded import compose_for_run
from arcloop.display.redirect import redirect_output
from arcloop.display.terminal import print_line
from arcloop.distributed import threads
from arcloop.errors import ArcloopError, ConfigError, TrainingPruned, as_user_error
from arcloop.pipeline.chains import CHAINS, FROM_RUN, run_verb
from arcloop.pipeline.steps import ALL_STEPS
from arcloop.pipeline.sweeps.gpus import reserve_gpu
from arcloop.pipeline.sweeps.objectives import Objective, measure
from arcloop.pipeline.sweeps.plan import TRAINING
from arcloop.pipeline.sweeps.pruning import STORAGE, assign_job, require_not_pruned
from arcloop.pipeline.sweeps.record import (
    RECORD,
    Failure,
    JobRecord,
    Pruned,
    folder_name,
    old_folder_name,
)
from arcloop.pipeline.sweeps.sweep_record import SweepRecord

_OF_SWEEP = ("run_dir", "sweep", "launcher")
"""Keys that the command of a single job leaves out or sets itself."""
_WATCHER, _WATCH_SECONDS = "arcloop-watcher", 0.2


class TemporaryFailure(float):
    """NaN, the objective of a job that a continued sweep runs again."""


class PrunedObjective(float):
    """NaN, the objective of a job that was pruned; its trial gets the state PRUNED."""


@dataclass(frozen=True)
class Job:
    """The task function that Hydra launchers call for each point of a sweep.

    Launchers may pickle it and run it in other processes, so results are written to files.

    Attributes:
        verb: Verb of the job.
        swept: Keys that the sweep varies; they name the folder of the job.
        results: Folder for the records of this command's jobs.
        gpus: GPUs of which the job reserves one; if empty, the visible devices are not changed.
        in_runs: Whether the jobs differ only in their runs, so that each writes into its run.
        parent: Process id of the command.
        record: Id of the sweep, and the threads of each job. Launchers set other numbers in their
            processes, so `threads=auto` would otherwise depend on the launcher.
        command: The command of the sweep.
        objectives: Objectives that the job measures; empty if there is only the monitor.
    """

    verb: str
    swept: tuple[str, ...]
    results: Path
    gpus: tuple[str, ...]
    in_runs: bool
    parent: int
    record: SweepRecord
    command: str
    objectives: tuple[Objective, ...] = ()

    def __call__(self, config: DictConfig) -> float | list[float] | None:
        """Run the job and return its objectives for the sweeper; NaN if the job failed."""
        register_schema()
        if os.getppid() == self.parent:
            _exit_when_parent_ends(self.parent)
        os.environ[threads.VARIABLE] = str(self.record.threads)
        settings = HydraConfig.get()
        number, overrides = settings.job.num, list(settings.overrides.task)
        swept = {key: o.partition("=")[2] for o in overrides if (key := key_of(o)) in self.swept}
        folder = Path(settings.sweep.dir) / folder_name(swept)
        if self.verb in TRAINING:
            old = folder.with_name(old_folder_name(swept))
            folder = old if old.is_dir() else folder
            if any(key_of(o) == "run_dir" for o in overrides):
                folder = Path(config.run_dir)
            config.run_dir = str(folder)
        assign_job(config, Path(settings.sweep.dir) / STORAGE, number)
        with contextlib.ExitStack() as stack:
            if not settings.verbose:
                with contextlib.suppress(OSError):  # the verb reports that it cannot write there
                    stack.enter_context(redirect_output(folder / JOB_LOG))
            point = " ".join(f"{key}={value}" for key, value in swept.items())
            print_line(f"job {number + 1}: {point} -> {folder}")
            record = self._attempt(config, overrides, swept, folder)
            if record.failure is not None:
                print_line(f"job {number + 1} failed: {record.failure.what}")
            if record.pruned is not None:
                print_line(
                    f"job {number + 1} pruned: its setting had {config.monitor}"
                    f" {record.pruned.value:.4f} after epoch {record.pruned.epoch}"
                )
        record.write(self.results / f"{number:09d}.json")
        if record.pruned is not None:
            return PrunedObjective(math.nan)
        if record.failure is None:
            several = [value for _, value in record.objectives.values()]
            return several or record.objective
        return TemporaryFailure(math.nan) if record.failure.retry else math.nan

    def _attempt(
        self, config: DictConfig, overrides: Sequence[str], swept: Mapping[str, str], folder: Path
    ) -> JobRecord:
        """Run the verb and record the result; skip a job that has finished or failed permanently.

        The record of a finished job of another config is kept if this job fails.
        """
        before = JobRecord.read(folder / RECORD)
        record = JobRecord("", self.verb, list(overrides), dict(swept), _now(), "", None, None)
        record = replace(record, run_dir=str(folder))
        try:
            if self.verb in FROM_RUN:
                config = compose_for_run(overrides)
                run, sha256 = _identify_run(Path(config.run_dir), folder, before)
                record = replace(record, run=run, run_sha256=sha256)
            check_config(config, overrides)
            record = replace(record, config_sha256=_config_sha256(self.verb, to_plain(config)))
            record = self._run(config, record, before)
        except TrainingPruned as decision:
            record = replace(record, pruned=Pruned(decision.epoch, decision.value))
        except Exception as error:  # noqa: BLE001 - one failed job must not end the sweep
            record = replace(record, failure=Failure.of(error))
            if as_user_error(error) is None:
                print_line(traceback.format_exc())
            if self._has_other_run(config, record, before):
                return replace(record, ended=_now())
        if not record.reused:
            record = replace(record, ended=_now())
            record.write(folder / RECORD)
        return record

    def _run(self, config: DictConfig, record: JobRecord, before: JobRecord | None) -> JobRecord:
        """Return the record of the job after it has run, or that of an earlier command."""
        folder, overrides = Path(record.run_dir), record.overrides
        same = before is not None and before.is_same(record)
        if self.verb in TRAINING:
            repeats = not same or config.overwrite
            if before and not repeats and (reason := _skips(before, folder)):
                print_line(f"skipped: {reason}; overwrite=true runs it again")
                return replace(before, reused=True)
            is_finished = same and artifacts.exists(folder)
            if not is_finished and not self._has_other_run(config, record, before):
                (folder / RECORD).unlink(missing_ok=True)
        if self.gpus:
            reserve_gpu(self.gpus)
        require_not_pruned(config)
        self._set_origin(config, overrides, record.swept)
        output = folder if self.verb in FROM_RUN and not self.in_runs else None
        outcome = run_verb(self.verb, config, overrides, in_sweep=True, output=output)
        if before and same and outcome.reused and _is_finished(folder, before):
            return replace(before, reused=True)
        return replace(
            record,
            objective=outcome.objective,
            objectives=measure(folder, self.objectives),
            gate_passed=outcome.gate_passed,
            metrics=outcome.metrics,
        )

    def _has_other_run(
        self, config: DictConfig, record: JobRecord, before: JobRecord | None
    ) -> bool:
        """Return whether the folder contains a finished job of another config, which is kept."""
        same = before is not None and before.is_same(record)
        is_finished = self.verb in TRAINING and _is_finished(Path(record.run_dir), before)
        return is_finished and not same and not config.overwrite

    def _set_origin(
        self, config: DictConfig, overrides: Sequence[str], swept: Mapping[str, str]
    ) -> None:
        """Set `Config.origin`, with a command that repeats this job without the sweep."""
        alone = [o for o in overrides if re.split(r"[./]", key_of(o))[0] not in _OF_SWEEP]
        words = ["arcloop", self.verb, *alone, f"run_dir={config.run_dir}"]
        folder = HydraConfig.get().sweep.dir
        sweep = {"id": self.record.id, "folder": folder, "command": self.command}
        set_origin(config, shlex.join(words), [o for o in overrides if key_of(o) in swept], sweep)


def _identify_run(run_dir: Path, folder: Path, before: JobRecord | None) -> tuple[str, str]:
    """Return the path of a run, relative to the folder of a job on it, and its hash.

    Raises:
        ConfigError: The folder contains a job on another run.
    """
    path = os.path.relpath(run_dir.resolve(), folder.resolve())
    if before is not None and before.run not in ("", path):
        raise ConfigError(
            f"this folder contains a job on another run, {before.run}",
            where=folder,
            remedy="set another folder for the sweep: hydra.sweep.dir=...",
        )
    return path, artifacts.read(run_dir, "run").sha256


def _is_finished(run_dir: Path, record: JobRecord | None) -> bool:
    if record is None:
        return artifacts.exists(run_dir)
    return record.failure is None and record.pruned is None


def _skips(before: JobRecord, folder: Path) -> str | None:
    """Return why a job with this record of the same config does not run again; None if it does."""
    if before.failure and not before.failure.retry:
        return "it failed before with this config"
    if artifacts.is_cleaned(folder):
        return "it finished, and `arcloop clean` removed its model"
    return None


def _config_sha256(verb: str, plain: Mapping[str, Any]) -> str:
    """Return the hash of the config groups that the result of a verb depends on."""
    reads = sorted({name for step in CHAINS[verb] for name in ALL_STEPS[step].reads})
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
    remedy = f"see `arcloop leaderboard {shlex.quote(str(sweep))}`; {remedy}"
    what = f"{len(failed)} of {len(records)} jobs failed; the first error: {what}"
    return kind(what, where=run_dir, remedy=remedy)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


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
