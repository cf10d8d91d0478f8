"""The file that each row of a store was read from, with its size, modification time and hash.

These tables trace a row back to its image file, and show which images were added to a source or
changed since the store was written. A file of equal size and modification time is read again only
if its inode number or its inode change time (ctime) differs from that in `.identities.npy`. That
file is not a part of the artifact, because both differ for a copy of the images.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import write_bytes
from arcloop.data.splits import SPLITS
from arcloop.data.store import GROUPS, Store
from arcloop.data.store.shards import NO_GROUP, FileTable, shard_file
from arcloop.errors import DataError, list_some

Ints = npt.NDArray[np.int64]
Paths = npt.NDArray[np.bytes_]

_IDENTITIES = ".identities.npy"
_MAX_INT = 2**63 - 1
_REGION = re.compile(r"#(box|points)=[-.,\d]+$")
"""End of the name of an image that is a part of a file, see `Region`."""


def make_table(paths: Sequence[bytes], versions: Ints, hashes: Sequence[int]) -> FileTable:
    """Join paths with their [N, 2] sizes and modification times, and [N] `hash_content`."""
    width = max(map(len, paths), default=1)
    fields = [("path", f"S{width}"), ("size", "<i8"), ("changed", "<i8"), ("hash", "<i8")]
    table = np.empty(len(paths), fields)
    table["path"], table["hash"] = paths, hashes
    table["size"], table["changed"] = versions[:, 0], versions[:, 1]
    return table


def hash_content(content: bytes) -> int:
    """Return a hash of 8 bytes of the content of a file."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), signed=True)


def hash_files(paths: Iterable[str]) -> Ints:
    """Return [N] hashes of the contents of files; 0 for a file that cannot be read."""

    def hash_file(path: str) -> int:
        try:
            return hash_content(Path(path).read_bytes())
        except OSError:
            return 0

    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        return np.fromiter(pool.map(hash_file, paths), np.int64)


def file_versions(paths: Sequence[str]) -> Ints:
    """Return the current [N, 4] size (bytes), mtime (ns), inode number and ctime (ns) of files.

    All are -1 for a file that does not exist.
    """
    versions = np.full((len(paths), 4), -1, np.int64)
    for number, path in enumerate(paths):
        with contextlib.suppress(OSError):  # a link to a missing file or to itself
            stat = os.stat(path)  # noqa: PTH116 - Path objects of millions of files are slow
            inode = stat.st_ino & _MAX_INT  # some file systems use all 64 bits
            versions[number] = stat.st_size, stat.st_mtime_ns, inode, stat.st_ctime_ns
    return versions


def record_identities(store: Path, root: str, files: FileTable) -> None:
    """Record inode number and ctime of the files of a store, whose contents were compared.

    Args:
        store: Folder of the store.
        root: Folder that the paths start from.
        files: The files, in the order of `StoreContents`.
    """
    names = map(os.fsdecode, files["path"].tolist())
    paths = [os.path.join(root, _REGION.sub("", name)) for name in names]  # noqa: PTH118
    content = io.BytesIO()
    np.save(content, file_versions(paths)[:, 2:])
    with contextlib.suppress(OSError):  # files of a read-only store are compared every time
        write_bytes(store / _IDENTITIES, content.getvalue())


@dataclass(frozen=True)
class StoreContents:
    """The images of a store, in the order of the splits.

    Attributes:
        files: [N] file of each image.
        labels: [N] label of each image.
        splits: [N] position of its split in `SPLITS`.
        identities: [N, 2] inode number and ctime of each file when its content was last compared.
        classes: Class names.
        num_train_classes: Number of classes of train. They have the first labels.
        leave_one_out: Whether gallery is also the query split.
        groups: [N] group of each image; None if the store has no groups.
        group_names: Names of the groups.
    """

    files: FileTable
    labels: Ints
    splits: Ints
    identities: Ints
    classes: list[str]
    num_train_classes: int
    leave_one_out: bool
    groups: Ints | None = None
    group_names: Sequence[str] = ()

    @classmethod
    def read(cls, artifact: Artifact) -> StoreContents | None:
        """Read the contents of a store; None if its source does not have one file per image."""
        store = Store(artifact)
        stored = SPLITS[:-1] if store.leave_one_out else SPLITS
        names = [
            f"{split}/{shard_file('origins', shard)}"
            for split in stored
            for shard in range(len(artifact.info["splits"][split]["shards"]))
        ]
        if not all(name in artifact.files for name in names):
            return None
        files = np.concatenate([np.load(artifact.path / name) for name in names])
        identities = np.full((len(files), 2), -1, np.int64)
        with contextlib.suppress(OSError, ValueError, EOFError):  # missing or damaged
            identities[:] = np.load(artifact.path / _IDENTITIES)
        groups = [of_split for split in stored if (of_split := store.groups(split)) is not None]
        return cls(
            files=files,
            identities=identities,
            labels=np.concatenate([store.labels(split) for split in stored]),
            splits=np.repeat(np.arange(len(stored)), [store.rows(split) for split in stored]),
            classes=store.classes,
            num_train_classes=store.num_train_classes,
            leave_one_out=store.leave_one_out,
            groups=np.concatenate(groups) if groups else None,
            group_names=json.loads((artifact.path / GROUPS).read_bytes()) if groups else (),
        )

    @property
    def class_counts(self) -> Ints:
        """[C, 4] images of each class in each of `SPLITS`."""
        counts = np.zeros((len(self.classes), len(SPLITS)), np.int64)
        np.add.at(counts, (self.labels, self.splits), 1)
        return counts

    def split_of_groups(self, num_groups: int) -> Ints:
        """Return [num_groups] position in `SPLITS` of each group, -1 for a group not stored."""
        split_G = np.full(num_groups, -1)
        if self.groups is not None:
            in_group = self.groups != NO_GROUP
            split_G[self.groups[in_group]] = self.splits[in_group]
        return split_G


@dataclass(frozen=True)
class SourceChanges:
    """Differences between a source and a store that was made from it.

    Attributes:
        is_new: [N] whether an image of the source is missing in the store.
        unchanged: Number of images that are in both and did not change.
        compared: Number of images whose content was compared.
        removed: Paths of images that are only in the store.
        changed: Paths of images whose file, label, split or group changed.
    """

    is_new: npt.NDArray[np.bool_]
    unchanged: int
    compared: int
    removed: list[str]
    changed: list[str]

    @property
    def only_additions(self) -> bool:
        """Whether every stored image is still in the source, unchanged."""
        return not self.removed and not self.changed

    def require_only_additions(self, store: Path) -> None:
        """Check that no stored image was removed from the source or changed.

        Args:
            store: The store, for the error message.

        Raises:
            DataError: Images were removed or changed; the message names the first ones.
        """
        indent = "\n    "
        faults = [
            f"{len(paths)} of its images were {what} since:{indent}{list_some(paths, 10, indent)}"
            for what, paths in (("removed", self.removed), ("changed", self.changed))
            if paths
        ]
        if faults:
            raise DataError(
                "the store cannot be appended to: " + "\n  ".join(faults),
                where=store,
                remedy="restore these images, or prepare a new store without append=true, which"
                " splits all images again",
            )


def compare_files(
    stored: StoreContents,
    paths: Paths,
    versions: Callable[[Ints], Ints],
    hashes: Callable[[Ints], Ints],
    labels: Ints,
    splits: Ints | None,
    groups: Ints | None = None,
    *,
    full: bool,
) -> SourceChanges:
    """Compare the images of a store with the images of its source.

    Args:
        stored: Images of the store.
        paths: [N] paths of the source.
        versions: Returns `file_versions`, [n, 4], of the images at n positions.
        hashes: Returns `hash_files`, [n], of the images at n positions.
        labels: [N] labels of the store; -1 for a class that is not in the store.
        splits: [N] positions in `SPLITS`, if the source defines them.
        groups: [N] groups of the store, if both have groups.
        full: Whether to compare the contents of all files.
    """
    order = np.argsort(stored.files["path"])
    files = stored.files[order]
    place = np.searchsorted(files["path"], paths).clip(max=len(files) - 1)
    is_new = files["path"][place] != paths
    in_both = np.flatnonzero(~is_new)
    place = place[in_both]
    rows = order[place]
    then = np.stack([files["size"][place], files["changed"][place]], axis=1)
    now = versions(in_both)
    differs = (now[:, :2] != then).any(axis=1) | (labels[in_both] != stored.labels[rows])
    is_unknown = full | (now[:, 2:] != stored.identities[rows]).any(axis=1)
    unknown = np.flatnonzero(~differs & is_unknown)
    if "hash" in (files.dtype.names or ()):  # stores of earlier versions have none
        differs[unknown] = hashes(in_both[unknown]) != files["hash"][place[unknown]]
    if splits is not None:
        differs |= splits[in_both] != stored.splits[rows]
    if groups is not None and stored.groups is not None:
        differs |= groups[in_both] != stored.groups[rows]
    is_removed = np.ones(len(files), dtype=bool)
    is_removed[place] = False
    return SourceChanges(
        is_new=is_new,
        unchanged=int((~differs).sum()),
        compared=len(unknown),
        removed=[os.fsdecode(path) for path in files["path"][is_removed].tolist()],
        changed=[os.fsdecode(path) for path in files["path"][place[differs]].tolist()],
    )
