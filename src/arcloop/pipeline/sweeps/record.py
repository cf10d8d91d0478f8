"""Records of the jobs of a sweep: job.json in each job folder, and results for the command."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arcloop.artifacts.atomic import sha256_json, write_json
from arcloop.artifacts.locks import is_abandoned, process_tag
from arcloop.errors import ArcloopError, ConfigError, DivergedError, as_user_error
from arcloop.pipeline.chains import CHAINS
from arcloop.pipeline.steps import STEPS

NAME = "job.json"


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
        failure: Why the job failed; None if it finished.
    """

    config_sha256: str
    verb: str
    overrides: Sequence[str]
    swept: Mapping[str, str]
    started: str
    ended: str
    objective: float | None
    failure: Failure | None

    def write(self, folder: Path) -> None:
        """Write job.json into the folder of the job."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / NAME, asdict(self))


def read(folder: Path) -> JobRecord | None:
    """Return the record in a job folder, or None if there is no readable record."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        content = json.loads((folder / NAME).read_bytes())
        failure = content.pop("failure")
        return JobRecord(**content, failure=None if failure is None else Failure(**failure))
    return None


def remove(folder: Path) -> None:
    """Remove the record of a job that will run again."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        (folder / NAME).unlink()


def config_sha256(verb: str, plain: Mapping[str, Any]) -> str:
    """Return the hash of the config groups that the result of a verb depends on.

    Args:
        verb: A key of `CHAINS`.
        plain: The resolved config. Output folders and settings of the sweep are not hashed.
    """
    reads = sorted({name for step in CHAINS[verb] for name in STEPS[step].reads})
    return sha256_json([verb, {name: plain[name] for name in reads}])


def results_folder(sweep: Path) -> Path:
    """Return the results folder of this process, and remove those of processes that ended."""
    folder = sweep / ".outcomes"
    for other in folder.glob("*"):
        if is_abandoned(other):
            shutil.rmtree(other, ignore_errors=True)
    return folder / process_tag()


class SweepResults:
    """Results of the jobs of one command, stored as files because jobs may run on other machines.

    Args:
        folder: Folder that only this command uses.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, number: int, run_dir: str, failure: Failure | None, *, gate: bool | None) -> None:
        """Record the result of a job."""
        self._folder.mkdir(parents=True, exist_ok=True)
        result = {"run_dir": run_dir, "failure": failure and asdict(failure), "gate": gate}
        write_json(self._folder / f"{number:09d}.json", result)

    def take(self) -> list[tuple[str, Failure | None, bool | None]]:
        """Return run_dir, failure and gate verdict of every job, in order, and remove the files."""
        found = []
        for file in sorted(self._folder.glob("*.json")):
            result = json.loads(file.read_bytes())
            failure = result["failure"] and Failure(**result["failure"])
            found.append((result["run_dir"], failure, result["gate"]))
            file.unlink()
        with contextlib.suppress(OSError):
            self._folder.rmdir()
            self._folder.parent.rmdir()
        return found


def sweep_error(
    results: Sequence[tuple[str, Failure | None, bool | None]], sweep: Path
) -> ArcloopError:
    """Return the error of a sweep with failed jobs; it has the exit code of the first failure."""
    failed = [(run_dir, failure) for run_dir, failure, _ in results if failure is not None]
    run_dir, first = failed[0]
    kind = ConfigError if first.exit_code == ConfigError.exit_code else ArcloopError
    what = first.what.partition("\n")[0]
    retried = sum(failure.retry for _, failure in failed)
    return kind(
        f"{len(failed)} of {len(results)} jobs failed; the first error: {what}",
        where=run_dir,
        remedy=f"see `arcloop leaderboard {sweep}`; "
        + (
            f"the same command runs {retried} of them again"
            if retried
            else "correct their config; without a change they would fail again"
        ),
    )
