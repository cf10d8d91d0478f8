"""One job of a sweep, which a Hydra launcher runs in this process, in another one, or remotely.

Its record is written to `job.json` in the folder of the job, and to a temporary folder of the
command, because launchers do not return why a job failed.
"""

from __future__ import annotations

import datetime
import math
import multiprocessing
import os
import re
import shlex
import signal
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from arcloop import artifacts
from arcloop.artifacts.atomic import sha256_json
from arcloop.config.composition import (
    check_config,
    register_schema,
    to_plain,
)
from arcloop.config.origin import set_origin
from arcloop.config.recorded import compose_for_run, find_run_dir
from arcloop.display.terminal import print_line
from arcloop.distributed import threads
from arcloop.errors import ArcloopError, ConfigError, TrainingPruned, as_user_error
from arcloop.pipeline.chains import CHAINS, FROM_RUN, VerbResult, run_verb
from arcloop.pipeline.steps import STEPS
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
        parent: Process id of the command.
        record: Id of the sweep, and the threads of each job. Launchers set other numbers in their
            processes, where `threads=auto` would otherwise differ.
        command: The command of the sweep.
        objectives: Objectives of a search with several, which the job measures.
    """

    verb: str
    swept: tuple[str, ...]
    results: Path
    gpus: tuple[str, ...]
    parent: int
    record: SweepRecord
    command: str
    objectives: tuple[Objective, ...] = ()

    def __call__(self, config: DictConfig) -> float | list[float] | None:
        """Run the job and return its objectives for the sweeper; NaN if the job failed."""
        register_schema()
        if os.getppid() == self.parent:
            _exit_when_parent_ends(self.parent)
            # joblib changes the method in its processes; they could not start loader processes.
            multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
        os.environ[threads.VARIABLE] = str(self.record.threads)
        settings = HydraConfig.get()
        number, overrides = settings.job.num, list(settings.overrides.task)
        swept = {key: o.partition("=")[2] for o in overrides if (key := _key(o)) in self.swept}
        if self.verb in FROM_RUN:
            config.run_dir = str(find_run_dir(overrides))
        elif not any(_key(o) == "run_dir" for o in overrides):
            old = Path(settings.sweep.dir) / old_folder_name(swept)
            config.run_dir = str(old if old.is_dir() else old.with_name(folder_name(swept)))
        assign_job(config, Path(settings.sweep.dir) / STORAGE, number)
        point = " ".join(f"{key}={value}" for key, value in swept.items())
        print_line(f"job {number}: {point} -> {config.run_dir}")
        record = self._attempt(config, overrides, swept)
        record.write(self.results / f"{number:09d}.json")
        if record.pruned is not None:
            print_line(
                f"job {number} pruned: its setting had {config.monitor}"
                f" {record.pruned.value:.4f} after epoch {record.pruned.epoch}"
            )
            return PrunedObjective(math.nan)
        if record.failure is None:
            several = [value for _, value in record.objectives.values()]
            return several or record.objective
        print_line(f"job {number} failed: {record.failure.what}")
        return TemporaryFailure(math.nan) if record.failure.retry else math.nan

    def _attempt(
        self, config: DictConfig, overrides: Sequence[str], swept: Mapping[str, str]
    ) -> JobRecord:
        """Run the verb and record the result; skip a job that has failed permanently."""
        file = Path(config.run_dir) / RECORD
        sha256, started = "", _now()
        outcome, failure, pruned = VerbResult(), None, None
        objectives: dict[str, tuple[str, float]] = {}
        has_other_run = False  # a finished job of another config, whose record is kept
        try:
            if self.verb in FROM_RUN:
                config = compose_for_run(overrides)
            check_config(config)
            sha256 = _config_sha256(self.verb, to_plain(config))
            if self.verb in TRAINING:
                before = JobRecord.read(file)
                same = before is not None and before.config_sha256 == sha256
                if (
                    before
                    and same
                    and not config.overwrite
                    and (reason := _skips(before, file.parent))
                ):
                    print_line(f"skipped: {reason}; overwrite=true runs it again")
                    return before
                has_other_run = (
                    _is_finished(file.parent, before) and not same and not config.overwrite
                )
                if not has_other_run:
                    file.unlink(missing_ok=True)
            if self.gpus:
                reserve_gpu(self.gpus)
            require_not_pruned(config)
            self._set_origin(config, overrides, swept)
            outcome = run_verb(self.verb, config, overrides)
            objectives = measure(Path(config.run_dir), self.objectives)
        except TrainingPruned as decision:
            pruned = Pruned(decision.epoch, decision.value)
        except Exception as error:  # noqa: BLE001 - one failed job must not end the sweep
            failure = Failure.of(error)
            if as_user_error(error) is None:
                print_line(traceback.format_exc())
        record = JobRecord(
            sha256, self.verb, list(overrides), dict(swept), started, _now(),
            outcome.objective, failure, config.run_dir, outcome.gate_passed, pruned, objectives,
        )  # fmt: skip
        if self.verb in TRAINING and not (failure and has_other_run):
            record.write(file)
        return record

    def _set_origin(
        self, config: DictConfig, overrides: Sequence[str], swept: Mapping[str, str]
    ) -> None:
        """Set `Config.origin`; its command repeats the job alone."""
        alone = [o for o in overrides if re.split(r"[./]", _key(o))[0] not in _OF_SWEEP]
        words = ["arcloop", self.verb, *alone, f"run_dir={config.run_dir}"]
        folder = HydraConfig.get().sweep.dir
        sweep = {"id": self.record.id, "folder": folder, "command": self.command}
        set_origin(config, shlex.join(words), [o for o in overrides if _key(o) in swept], sweep)


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
