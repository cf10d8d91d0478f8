"""job.json: what became of a job of a sweep, beside what it made."""

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
from arcloop.pipeline.chain import CHAINS
from arcloop.pipeline.steps import STEPS

NAME = "job.json"


@dataclass(frozen=True)
class Failure:
    """Why a job failed.

    Attributes:
        what: The error.
        again: Whether the sweep tries the job again when it is continued: what the machine did may
            not happen twice; what the config does will.
        exit_code: Of the command.
    """

    what: str
    again: bool
    exit_code: int

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Tell the errors that come again from those that may not."""
        known = as_user_error(error)
        if known is None:
            return cls(f"{type(error).__name__}: {error}", again=True, exit_code=1)
        for_good = isinstance(known, ConfigError | DivergedError)
        return cls(str(known), again=not for_good, exit_code=known.exit_code)


@dataclass(frozen=True)
class JobRecord:
    """What became of a job.

    Attributes:
        config_sha256: Hash of all that its result depends on.
        verb: What was done.
        overrides: What its config was composed from.
        swept: Key -> value of what the sweep varies.
        started: When, in UTC.
        ended: When, in UTC.
        objective: Best monitored metric of val, where something was trained.
        failure: Why it failed; None: it did not.
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
        """Write job.json into the job's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / NAME, asdict(self))


def read(folder: Path) -> JobRecord | None:
    """Return the record of the job whose folder this is, None if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        content = json.loads((folder / NAME).read_bytes())
        failure = content.pop("failure")
        return JobRecord(**content, failure=None if failure is None else Failure(**failure))
    return None


def remove(folder: Path) -> None:
    """Forget what became of the job: it is done anew."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        (folder / NAME).unlink()


def config_sha256(verb: str, plain: Mapping[str, Any]) -> str:
    """Return the hash of all in a config that the result of a verb depends on.

    Args:
        verb: A key of `CHAINS`.
        plain: The resolved config; where it is written, and how the sweep runs, do not count.
    """
    reads = sorted({name for step in CHAINS[verb] for name in STEPS[step].reads})
    return sha256_json([verb, {name: plain[name] for name in reads}])


class Outcomes:
    """What the jobs of one command came to, as files: jobs may run in other processes, elsewhere.

    Args:
        folder: Of this command alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of_this_process(cls, sweep: Path) -> Path:
        """Return the folder for the command that this process is, and remove those of dead ones."""
        here = sweep / ".outcomes"
        for other in here.glob("*"):
            if is_abandoned(other):
                shutil.rmtree(other, ignore_errors=True)
        return here / process_tag()

    def add(self, number: int, run_dir: str, failure: Failure | None, *, gate: bool | None) -> None:
        """Tell what the job of this number came to."""
        self._folder.mkdir(parents=True, exist_ok=True)
        told = {"run_dir": run_dir, "failure": failure and asdict(failure), "gate": gate}
        write_json(self._folder / f"{number:09d}.json", told)

    def take(self) -> list[tuple[str, Failure | None, bool | None]]:
        """Return run_dir, failure and gate's verdict of every job, in order, and forget them."""
        found = []
        for file in sorted(self._folder.glob("*.json")):
            told = json.loads(file.read_bytes())
            failure = told["failure"] and Failure(**told["failure"])
            found.append((told["run_dir"], failure, told["gate"]))
            file.unlink()
        with contextlib.suppress(OSError):
            self._folder.rmdir()
            self._folder.parent.rmdir()
        return found


def unfinished(
    told: Sequence[tuple[str, Failure | None, bool | None]], sweep: Path
) -> ArcloopError:
    """Return the error of a sweep in which jobs failed; its exit code is that of the first."""
    failed = [(run_dir, failure) for run_dir, failure, _ in told if failure is not None]
    run_dir, first = failed[0]
    kind = ConfigError if first.exit_code == ConfigError.exit_code else ArcloopError
    what = first.what.partition("\n")[0]
    again = sum(failure.again for _, failure in failed)
    return kind(
        f"{len(failed)} of {len(told)} jobs failed; the first: {what}",
        where=run_dir,
        remedy=f"see `arcloop leaderboard {sweep}`; "
        + (
            f"given again, the same command tries {again} of them again"
            if again
            else "they would fail again as they are"
        ),
    )
