"""The record of a job, `job.json`, and the name of the folder of a job."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from zlib import crc32

from arcloop.artifacts import JOB_RECORD
from arcloop.artifacts.atomic import write_json
from arcloop.errors import ConfigError, DivergedError, as_user_error

RECORD = JOB_RECORD
_MAX_NAME_LENGTH = 200


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
        value: The monitored metric on val after this epoch, for the first seed of the setting.
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
        metrics: Name -> value, of the metrics of a verb that trains nothing; those of an evaluation
            are on the query split. See `arcloop.pipeline.chains.measurements`.
        run: Run that the job started from, relative to the folder of the job; empty if it trained.
        run_sha256: Hash of that run.
        reused: Whether an earlier command ran the job; set only in the results of a command.
        pruned: When a pruner ended the job; None if it was not pruned. A pruned job has no result.
        objectives: Name -> direction ("max" or "min") and value; empty for a single objective.
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
    objectives: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    run: str = ""
    run_sha256: str = ""
    reused: bool = False

    def is_same(self, other: JobRecord) -> bool:
        """Return whether two jobs have the same config, and started from the same run."""
        return (self.config_sha256, self.run_sha256) == (other.config_sha256, other.run_sha256)

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


def run_of_job(folder: Path) -> Path | None:
    """Return the run that a job in this folder started from; None if there is no such job."""
    record = JobRecord.read(folder / RECORD)
    return Path(os.path.normpath(folder / record.run)) if record and record.run else None


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


def old_folder_name(swept: Mapping[str, str]) -> str:
    """Return the folder name that earlier versions used; their sweeps can be continued."""
    point = ",".join(f"{key}={value}" for key, value in swept.items())
    name = re.sub(r"[^\w.,=+\[\]-]", "-", point) or "only"
    long = len(name) > _MAX_NAME_LENGTH
    return f"{name[: _MAX_NAME_LENGTH - 9]}-{crc32(name.encode()):08x}" if long else name
