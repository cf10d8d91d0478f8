"""The folder a server loads from: some versions of one model, one of them live.

    model_store/
      NAME-VERSION.mar    versions that can be loaded
      backup/             older ones, restorable
      live.json           which version is live, and which was before it
      config.properties   what TorchServe reads; made of live.json and the settings
      http-server.json    what the second server reads, likewise

Every change is a rename, and what a name stands for is there before the name is used. So whatever
moment a process dies at, the store can be served: live.json and config.properties each name an
archive that is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from arcloop.artifacts.atomic import write_bytes, write_json
from arcloop.display.terminal import say
from arcloop.errors import ArtifactError, ConfigError, unwritable
from arcloop.serving.store.naming import version_of

LIVE = "live.json"
BACKUP = "backup"
_LOCK = ".lock"
_DRAFTS = ".drafts"


@dataclass(frozen=True)
class Version:
    """An archive in the store.

    Attributes:
        version: Its version.
        path: Its file.
        state: "live"; "previous", the one before; "kept", loadable; or "backup".
    """

    version: str
    path: Path
    state: str


class ModelStore:
    """The versions of one model. Whoever changes them holds the lock; see `locked`.

    Args:
        path: Its folder; made when first locked.
        name: Of the model.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    @contextlib.contextmanager
    def locked(self) -> Iterator[Path]:
        """Hold the store against other deploys; yields an empty folder for drafts.

        Raises:
            ConfigError: The store is of another model.
            ResourceError: The folder cannot be written.
        """
        try:
            (self.path / BACKUP).mkdir(parents=True, exist_ok=True)
            lock = open(self.path / _LOCK, "a")  # noqa: SIM115 - closed below
        except OSError as cause:
            raise unwritable(self.path, cause) from cause
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waiting for another deploy to {self.path}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._require_name()
            drafts = self.path / _DRAFTS
            try:
                shutil.rmtree(drafts, ignore_errors=True)  # of a deploy that was killed
                drafts.mkdir()
                yield drafts
            except OSError as cause:
                raise unwritable(self.path, cause) from cause
            finally:
                shutil.rmtree(drafts, ignore_errors=True)

    def live(self) -> Version | None:
        """Return the live version; None if nothing was ever deployed."""
        return next((v for v in self.versions() if v.state == "live"), None)

    def versions(self) -> list[Version]:
        """Return every version, oldest first."""
        live, previous = self._read_live()
        states = {previous: "previous", live: "live"}
        found = [
            Version(version, file, "backup" if file.parent.name == BACKUP else state)
            for folder in (self.path, self.path / BACKUP)
            for file in folder.glob("*.mar")
            if (version := version_of(file, self.name))
            for state in [states.get(version, "kept")]
        ]
        return sorted(found, key=lambda v: v.version)

    def find(self, version: str) -> Version:
        """Return a version by its name.

        Raises:
            ArtifactError: It is not here.
        """
        for candidate in self.versions():
            if candidate.version == version:
                return candidate
        known = ", ".join(v.version for v in self.versions()) or "none"
        raise ArtifactError(
            f"there is no version {version}", where=self.path, remedy=f"versions: {known}"
        )

    def add(self, draft: Path) -> Version:
        """Take a whole archive, written and flushed in the folder for drafts, into the store."""
        target = self.path / draft.name
        draft.rename(target)
        _flush(self.path)
        version = version_of(target, self.name)
        assert version is not None
        return self.find(version)

    def make_live(self, version: str) -> Version:
        """Make a version live, out of the backup if need be; the live one becomes the previous.

        Raises:
            ArtifactError: It is not here.
        """
        found = self.restore(version)
        live, previous = self._read_live()
        if live != version:
            previous = live
        write_json(self.path / LIVE, {"name": self.name, "live": version, "previous": previous})
        _flush(self.path)
        return self.find(found.version)

    def write_config(self, name: str, content: str) -> Path:
        """Write a file of the server's config atomically, and return its path."""
        write_bytes(self.path / name, content.encode())
        _flush(self.path)
        return self.path / name

    def restore(self, version: str) -> Version:
        """Make a version loadable again.

        Raises:
            ArtifactError: It is not here.
        """
        found = self.find(version)
        if found.state == "backup":
            found.path.rename(self.path / found.path.name)
            _flush(self.path)
        return self.find(version)

    def prune(self, keep: int) -> list[Version]:
        """Move all but the newest `keep` versions to backup/; never the live or the previous one.

        Returns:
            The versions that were moved.
        """
        loadable = [v for v in self.versions() if v.state != "backup"]
        spare = len(loadable) - keep
        moved = [v for v in loadable if v.state == "kept"][: max(0, spare)]
        for version in moved:
            version.path.rename(self.path / BACKUP / version.path.name)
        _flush(self.path)
        return moved

    def _read_live(self) -> tuple[str | None, str | None]:
        try:
            content = json.loads((self.path / LIVE).read_bytes())
            return content["live"], content["previous"]
        except FileNotFoundError:
            return None, None
        except (ValueError, KeyError, TypeError):
            raise ArtifactError(
                f"{LIVE} is damaged",
                where=self.path / LIVE,
                remedy="delete it and make a version live again",
            ) from None

    def _require_name(self) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            other = json.loads((self.path / LIVE).read_bytes())["name"]
            if other != self.name:
                raise ConfigError(
                    f"this model store is of {other!r}, not {self.name!r}",
                    where=self.path,
                    remedy="choose another deploy.model_store",
                )


def _flush(folder: Path) -> None:
    """Bring renames in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
