"""The record of a sweep: its id, and the number of threads of its jobs."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from arcloop.artifacts.atomic import file_lock, write_json
from arcloop.distributed.launcher import count_processes_to_start
from arcloop.distributed.threads import default_threads
from arcloop.errors import ArtifactError

FILE = "sweep.json"


@dataclass(frozen=True)
class SweepRecord:
    """What all commands of a sweep share.

    The first command in a folder writes it. A sweep that is continued by another launcher or on
    another machine therefore uses the same number of threads, and the same sweep of a tracker.

    Attributes:
        id: Name of the folder (up to 100 characters) and a random suffix.
        threads: Threads of each job, unless its config or its run has a number.
    """

    id: str
    threads: int

    @classmethod
    def open(cls, folder: Path, threads: int) -> SweepRecord:
        """Read the record of a sweep, or write it if this is the first command.

        Args:
            folder: Folder of the sweep; it exists.
            threads: Threads of each job of a new sweep.

        Raises:
            ArtifactError: The record is damaged.
        """
        file = folder / FILE
        with file_lock(file):
            if not file.exists():
                record = cls(f"{folder.resolve().name[:100]}-{secrets.token_hex(3)}", threads)
                write_json(file, asdict(record))
                return record
            try:
                return cls(**json.loads(file.read_bytes()))
            except (ValueError, TypeError):
                raise ArtifactError(
                    "the record of the sweep is damaged",
                    where=file,
                    remedy='remove it, and pass threads= with "threads" of config.yaml of a job',
                ) from None


def threads_of_new_sweep(config: DictConfig) -> int:
    """Return the threads of each job of a new sweep.

    Args:
        config: The config of a job that trains.
    """
    if config.threads != "auto":
        return int(config.threads)
    if (cpus := OmegaConf.select(config, "launcher.cpus")) is not None:  # of another machine
        return max(1, int(cpus) // max(1, int(config.launcher.gpus)))
    return default_threads(count_processes_to_start(config))
