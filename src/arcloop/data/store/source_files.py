"""The file that each row of a store was read from, with its size and modification time.

These tables trace a row back to its image file, and show which images were added to a source since
the store was written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arcloop.artifacts import Artifact
from arcloop.data.splits import SPLITS
from arcloop.data.store import Store
from arcloop.data.store.shards import FileTable, shard_file
from arcloop.errors import DataError, list_some

Ints = npt.NDArray[np.int64]
Paths = npt.NDArray[np.bytes_]


def make_table(paths: Sequence[bytes], versions: Ints) -> FileTable:
    """Join paths with their [N, 2] sizes and modification times."""
    width = max(map(len, paths), default=1)
    table = np.empty(len(paths), [("path", f"S{width}"), ("size", "<i8"), ("changed", "<i8")])
    table["path"] = paths
    table["size"], table["changed"] = versions[:, 0], versions[:, 1]
    return table


def file_versions(paths: Sequence[str]) -> Ints:
    """Return the current [N, 2] sizes (bytes) and modification times (ns) of files.

    Both are -1 for a file that does not exist.
    """
    versions = np.full((len(paths), 2), -1, np.int64)
    for number, path in enumerate(paths):
        with contextlib.suppress(OSError):  # a link to a missing file or to itself
            stat = os.stat(path)  # noqa: PTH116 - Path objects of millions of files are slow
            versions[number] = stat.st_size, stat.st_mtime_ns
    return versions


@dataclass(frozen=True)
class StoreContents:
    """The images of a store, in the order of the splits.

    Attributes:
        files: [N] file of each image.
        labels: [N] label of each image.
        splits: [N] position of its split in `SPLITS`.
        classes: Class names.
        num_train_classes: Number of classes of train. They have the first labels.
        leave_one_out: Whether gallery is also the query split.
    """

    files: FileTable
    labels: Ints
    splits: Ints
    classes: list[str]
    num_train_classes: int
    leave_one_out: bool

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
        return cls(
            files=np.concatenate([np.load(artifact.path / name) for name in names]),
            labels=np.concatenate([store.labels(split) for split in stored]),
            splits=np.repeat(np.arange(len(stored)), [store.rows(split) for split in stored]),
            classes=store.classes,
            num_train_classes=store.num_train_classes,
            leave_one_out=store.leave_one_out,
        )

    @property
    def class_counts(self) -> Ints:
        """[C, 4] images of each class in each of `SPLITS`."""
        counts = np.zeros((len(self.classes), len(SPLITS)), np.int64)
        np.add.at(counts, (self.labels, self.splits), 1)
        return counts


@dataclass(frozen=True)
class SourceChanges:
    """Differences between a source and a store that was made from it.

    Attributes:
        is_new: [N] whether an image of the source is missing in the store.
        unchanged: Number of images that are in both and did not change.
        removed: Paths of images that are only in the store.
        changed: Paths of images whose file, label or split changed.
    """

    is_new: npt.NDArray[np.bool_]
    unchanged: int
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
    labels: Ints,
    splits: Ints | None,
) -> SourceChanges:
    """Compare the images of a store with the images of its source.

    Args:
        stored: Images of the store.
        paths: [N] paths of the source.
        versions: Returns the sizes and modification times, [n, 2], of the images at n positions.
        labels: [N] labels of the store; -1 for a class that is not in the store.
        splits: [N] positions in `SPLITS`, if the source defines them.
    """
    order = np.argsort(stored.files["path"])
    files = stored.files[order]
    place = np.searchsorted(files["path"], paths).clip(max=len(files) - 1)
    is_new = files["path"][place] != paths
    in_both = np.flatnonzero(~is_new)
    place = place[in_both]
    rows = order[place]
    then = np.stack([files["size"][place], files["changed"][place]], axis=1)
    differs = (versions(in_both) != then).any(axis=1) | (labels[in_both] != stored.labels[rows])
    if splits is not None:
        differs |= splits[in_both] != stored.splits[rows]
    is_removed = np.ones(len(files), dtype=bool)
    is_removed[place] = False
    return SourceChanges(
        is_new=is_new,
        unchanged=int((~differs).sum()),
        removed=[os.fsdecode(path) for path in files["path"][is_removed].tolist()],
        changed=[os.fsdecode(path) for path in files["path"][place[differs]].tolist()],
    )
