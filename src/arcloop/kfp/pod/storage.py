"""Folders of a pipeline's artifacts: in the pod of the step, or on the shared volume.

KFP downloads the input artifacts of a step to `artifact.path` and uploads what the step wrote
there. With `cluster.storage=pvc`, the data of an artifact are on the volume instead:

    MOUNT/pipelines/RUN/TASK/SALT/OUTPUT

`artifact.path` is then a small JSON file, the pointer, with that folder and its hash. KFP uploads,
downloads and caches only the pointer. The URI stays that of the object store, because KFP refuses
to start a step with an input artifact of any other URI. RUN, TASK, SALT and OUTPUT are the end of
the URI, which is the same in every attempt of a task. The modification time of RUN/.used is the
last time that a step used the run, see `arcloop.kfp.pod.retention`.

With `cluster.storage=artifacts`, only the train step can use a volume, `cluster.checkpoints`: it
trains in such a folder, from which a retry resumes, and copies the finished run to `artifact.path`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from arcloop import artifacts
from arcloop.artifacts.atomic import write_json
from arcloop.errors import ArtifactError

if TYPE_CHECKING:
    from kfp.dsl import Artifact

VOLUME = "ARCLOOP_VOLUME"
"""Environment variable with the mount path of the shared volume, if outputs are written there."""
CHECKPOINTS = "ARCLOOP_CHECKPOINTS"
"""Environment variable with the mount path of the volume that only the train step writes to."""
PIPELINES = "pipelines"
"""Folder on the volume that contains one folder for each run."""
USED = ".used"
"""File in the folder of a run that is touched when one of its artifacts is written or read."""
_TOUCH_EVERY_S = 600
_HASH = "sha256"
"""Key of the metadata of an artifact in KFP with the hash of its manifest."""


def output_folder(artifact: Artifact) -> Path:
    """Return the folder that the data of an output artifact are written to.

    The folder is the same in every attempt of a task. Its parent exists.
    """
    if not (mount := _mount()):
        return Path(artifact.path)
    scheme, _, rest = artifact.uri.rpartition("://")
    # A server appends RUN/TASK/SALT/OUTPUT to the pipeline root, kfp.local RUN/TASK/OUTPUT.
    parts = rest.split("/")[-4 if scheme else -3 :]
    folder = Path(mount, PIPELINES, *parts)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _touch([folder])
    return folder


def publish(artifact: Artifact, folder: Path, sha256: str) -> None:
    """Record the hash of an output artifact, and write its pointer or data to `artifact.path`.

    Args:
        artifact: The output artifact.
        folder: Its `output_folder`, completely written.
        sha256: Hash of its manifest.
    """
    artifact.metadata[_HASH] = sha256
    if folder == Path(artifact.path):
        return
    if VOLUME in os.environ:
        place = str(folder.relative_to(os.environ[VOLUME]))
        write_json(Path(artifact.path), {"folder": place, _HASH: sha256})
    else:
        shutil.copytree(folder, artifact.path, dirs_exist_ok=True)


def input_folder(artifact: Artifact, name: str) -> Path:
    """Return the folder with the data of an input artifact, made in this run or in an earlier one.

    Args:
        artifact: The input artifact.
        name: Name of the input, for messages; KFP sets `artifact.name` to a number.

    Raises:
        ArtifactError: The data were removed or replaced, or are on a volume that is not mounted.
    """
    folder = Path(artifact.path)
    if folder.is_file():
        pointer = json.loads(folder.read_bytes())
        if VOLUME not in os.environ:
            raise ArtifactError(
                f"the data of the input {name} are on a volume, which this step does not mount",
                where=pointer["folder"],
                remedy="set cluster.storage=pvc as in the earlier run, or another"
                " cluster.cache_version",
            )
        folder = Path(os.environ[VOLUME], pointer["folder"])
        _touch([folder])  # before the check, so that a run is not removed after it
    if not artifacts.exists(folder):
        raise _outdated(name, folder, "no longer exist")
    found, recorded = artifacts.read(folder, None).sha256, artifact.metadata.get(_HASH)
    if recorded not in (None, found):
        raise _outdated(name, folder, f"have the hash {found[:12]}, not {recorded[:12]}")
    return folder


@contextlib.contextmanager
def in_use(folders: Iterable[Path]) -> Iterator[None]:
    """Mark the runs of some folders as used, now and every ten minutes until the block ends.

    Args:
        folders: Results of `output_folder` and `input_folder`. Folders that are not on the volume
            are ignored.
    """
    root = Path(_mount() or "/dev/null", PIPELINES)
    folders = [folder for folder in folders if folder.is_relative_to(root)]
    if not folders:
        yield
        return
    ended = threading.Event()

    def touch_until_ended() -> None:
        _touch(folders)
        while not ended.wait(_TOUCH_EVERY_S):
            _touch(folders)

    thread = threading.Thread(target=touch_until_ended, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _mount() -> str | None:
    return os.environ.get(VOLUME) or os.environ.get(CHECKPOINTS)


def _touch(folders: Iterable[Path]) -> None:
    root = Path(_mount() or "", PIPELINES)
    for run in {root / folder.relative_to(root).parts[0] for folder in folders}:
        with contextlib.suppress(OSError):  # the run was removed, or the volume is read-only
            (run / USED).touch()


def _outdated(name: str, folder: Path, fault: str) -> ArtifactError:
    return ArtifactError(
        f"the data of the input {name} {fault}",
        where=folder,
        remedy="submit the run again with another cluster.cache_version, because KFP still has them"
        " in its cache",
    )
