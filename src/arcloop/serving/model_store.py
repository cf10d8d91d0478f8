"""A model store: a folder with versions of one model, one of which is live.

    model_store/
      NAME-VERSION.mar    loadable versions
      backup/             older versions, which can be restored
      live.json           the live version and the one that was live before
      config.properties   config of TorchServe for the live version
      http-server.json    config of the FastAPI server for the live version

The name of a version is TIME-LINEAGE: the time of archiving and a hash of the archive's contents.
Every change is an atomic rename, and an archive is moved into the store before a file refers to it.
Therefore live.json and the server configs always name complete archives, even if a process is
killed.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from arcloop.artifacts.atomic import file_lock, sync_folder, write_bytes, write_json
from arcloop.display.terminal import print_line
from arcloop.errors import ArtifactError, ConfigError, write_error

VERSION_PATTERN = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{12}")
_LIVE = "live.json"
_BACKUP = "backup"
_STAGING = ".staging"


def make_version(time: datetime, lineage: str) -> str:
    """Return the version of an archive: sortable by time, unique by lineage.

    >>> make_version(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "0123456789ab")
    '20260102T030405Z-0123456789ab'
    """
    return f"{time.astimezone(UTC):%Y%m%dT%H%M%SZ}-{lineage}"


def archive_file_name(name: str, version: str) -> str:
    """Return the file name of an archive."""
    return f"{name}-{version}.mar"


def parse_version(file: Path, name: str) -> str | None:
    """Return the version in the file name of an archive of this model; None for any other file.

    >>> parse_version(Path("a-b-20260102T030405Z-0123456789ab.mar"), "a-b")
    '20260102T030405Z-0123456789ab'
    """
    version = file.name.removeprefix(f"{name}-").removesuffix(".mar")
    complete = file.name == archive_file_name(name, version)
    return version if complete and VERSION_PATTERN.fullmatch(version) else None


@dataclass(frozen=True)
class Version:
    """An archive in the store.

    Attributes:
        version: Name of the version.
        path: File of the archive.
        state: "live"; "previous": the version that was live before; "kept": any other loadable
            version; "backup": in backup/.
    """

    version: str
    path: Path
    state: str


class ModelStore:
    """The versions of one model. Methods that change the store require the lock; see `locked`.

    Args:
        path: Folder of the store; created when it is first locked.
        name: Name of the model.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    @contextlib.contextmanager
    def locked(self) -> Iterator[Path]:
        """Lock the store against other processes, and yield an empty folder for temporary files.

        Raises:
            ConfigError: The store belongs to another model.
            ResourceError: The folder cannot be written.
        """
        staging = self.path / _STAGING
        waiting = f"waiting for another process that has locked {self.path}"
        with file_lock(self.path / _LIVE, on_wait=lambda: print_line(waiting)):
            self._read_live()  # raises for the store of another model
            try:
                (self.path / _BACKUP).mkdir(exist_ok=True)
                shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
                staging.mkdir()
                yield staging
            except OSError as cause:
                raise write_error(self.path, cause) from cause
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def live(self) -> Version | None:
        """Return the live version; None if no version was ever live."""
        return next((v for v in self.versions() if v.state == "live"), None)

    def versions(self) -> list[Version]:
        """Return all versions, oldest first."""
        live, previous = self._read_live()
        states = {previous: "previous", live: "live"}
        found = [
            Version(version, file, "backup" if file.parent.name == _BACKUP else state)
            for folder in (self.path, self.path / _BACKUP)
            for file in folder.glob("*.mar")
            if (version := parse_version(file, self.name))
            for state in [states.get(version, "kept")]
        ]
        return sorted(found, key=lambda v: v.version)

    def find(self, version: str) -> Version:
        """Return a version by its name.

        Raises:
            ArtifactError: The store does not have the version.
        """
        for candidate in self.versions():
            if candidate.version == version:
                return candidate
        known = ", ".join(v.version for v in self.versions()) or "none"
        raise ArtifactError(
            f"there is no version {version}", where=self.path, remedy=f"versions: {known}"
        )

    def add(self, archive: Path) -> Version:
        """Move a complete archive from the folder for temporary files into the store."""
        target = self.path / archive.name
        archive.rename(target)
        sync_folder(self.path)
        version = parse_version(target, self.name)
        assert version is not None
        return self.find(version)

    def make_live(self, version: str) -> Version:
        """Make a version live; the version that was live becomes the previous one.

        A version in backup/ is restored first.

        Raises:
            ArtifactError: The store does not have the version.
        """
        self.restore(version)
        live, previous = self._read_live()
        if live != version:
            previous = live
        write_json(self.path / _LIVE, {"name": self.name, "live": version, "previous": previous})
        sync_folder(self.path)
        return self.find(version)

    def write_config(self, name: str, content: str) -> None:
        """Write a server's config file atomically."""
        write_bytes(self.path / name, content.encode())
        sync_folder(self.path)

    def restore(self, version: str) -> Version:
        """Move a version out of backup/; a version that is not in backup/ is unchanged.

        Raises:
            ArtifactError: The store does not have the version.
        """
        found = self.find(version)
        if found.state == "backup":
            found.path.rename(self.path / found.path.name)
            sync_folder(self.path)
        return self.find(version)

    def prune(self, keep: int) -> list[Version]:
        """Move old versions to backup/, except the live and the previous version.

        Args:
            keep: Number of versions that stay loadable.

        Returns:
            The versions that were moved.
        """
        loadable = [v for v in self.versions() if v.state != "backup"]
        excess = max(0, len(loadable) - keep)
        moved = [v for v in loadable if v.state == "kept"][:excess]
        for version in moved:
            version.path.rename(self.path / _BACKUP / version.path.name)
        sync_folder(self.path)
        return moved

    def _read_live(self) -> tuple[str | None, str | None]:
        """Return the live and the previous version.

        Raises:
            ArtifactError: The record is damaged.
            ConfigError: The store belongs to another model.
        """
        try:
            content = json.loads((self.path / _LIVE).read_bytes())
            name, live, previous = (content[key] for key in ("name", "live", "previous"))
        except FileNotFoundError:
            return None, None
        except (ValueError, KeyError, TypeError):
            raise ArtifactError(
                f"{_LIVE} is damaged",
                where=self.path / _LIVE,
                remedy="delete it and make a version live again",
            ) from None
        if name != self.name:
            raise ConfigError(
                f"this model store belongs to {name!r}, not {self.name!r}",
                where=self.path,
                remedy="choose another deploy.model_store",
            )
        return live, previous
