"""`origins-00000.npy`: the file that each row of a shard was read from, as it was then.

So any row can be walked back to its picture, and a store can tell what its source has gained since.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop.artifacts import Artifact
from arcloop.data.sources.base import SPLITS
from arcloop.data.store.store import Store
from arcloop.errors import DataError

Ints = npt.NDArray[np.int64]
Paths = npt.NDArray[np.bytes_]
Origins = npt.NDArray[Any]
"""[N] of path (relative to the source's root), size (bytes) and changed (ns since the epoch)."""

ORIGINS = "origins-"
_NAMED = 10


def origins_file(shard: int) -> str:
    """Return the name of the file that tells where a shard's rows come from."""
    return f"{ORIGINS}{shard:05d}.npy"


def make_origins(paths: Sequence[bytes], versions: Ints) -> Origins:
    """Join paths and, [N, 2], sizes and times of change."""
    width = max(map(len, paths), default=1)
    origins = np.empty(len(paths), [("path", f"S{width}"), ("size", "<i8"), ("changed", "<i8")])
    origins["path"] = paths
    origins["size"], origins["changed"] = versions[:, 0], versions[:, 1]
    return origins


def file_versions(paths: Sequence[str]) -> Ints:
    """Return size and time of change, [N, 2], of files as they are now."""
    versions = np.full((len(paths), 2), -1, np.int64)  # of a link that leads nowhere any more
    for number, path in enumerate(paths):
        with contextlib.suppress(FileNotFoundError):
            stat = os.stat(path)  # noqa: PTH116 - of millions of them
            versions[number] = stat.st_size, stat.st_mtime_ns
    return versions


@dataclass(frozen=True)
class Held:
    """What a store holds.

    Attributes:
        rows: [N] origins, with label and number in `SPLITS`, in no order that means anything.
        classes: Class names.
        num_train_classes: Classes of train, which are the first.
        leave_one_out: Whether gallery is also the query split.
    """

    rows: Origins
    classes: list[str]
    num_train_classes: int
    leave_one_out: bool

    @classmethod
    def of(cls, artifact: Artifact) -> Held | None:
        """Read that of a store; None if its rows were not files of their own."""
        store = Store(artifact)
        parts: list[Origins] = []
        for number, split in enumerate(SPLITS):
            if split == "query" and store.leave_one_out:
                continue
            names = [
                f"{split}/{origins_file(shard)}"
                for shard in range(len(artifact.info["splits"][split]["shards"]))
            ]
            if not all(name in artifact.files for name in names):
                return None
            of_split = [np.load(artifact.path / name) for name in names]
            if of_split:
                parts.append(_with_labels(of_split, store.labels(split), number))
        widest = max(parts, key=lambda part: part.dtype["path"].itemsize).dtype
        rows = np.concatenate([part.astype(widest) for part in parts])
        return cls(rows, store.classes, store.num_train_classes, store.leave_one_out)

    @property
    def counts(self) -> Ints:
        """[C, splits] images of each class in each of `SPLITS`."""
        counts = np.zeros((len(self.classes), len(SPLITS)), np.int64)
        np.add.at(counts, (self.rows["label"], self.rows["split"]), 1)
        return counts

    def train_classes_after(
        self, classes: Sequence[str], trained: Ints, *, leave_one_out: bool
    ) -> int:
        """Return the number of classes of train when images are added.

        Args:
            classes: Those of the store, and new ones after them.
            trained: Labels of the images added to train.
            leave_one_out: Whether gallery is the query split in what is added.

        Raises:
            DataError: The classes of train would not be the first any more, or the splits would not
                be of the same kind.
        """
        if leave_one_out != self.leave_one_out:
            raise DataError(
                "there were no images of query when the store was prepared, or none are there now",
                remedy="prepare anew, without append=true",
            )
        if self.num_train_classes == len(self.classes):
            return len(classes)
        new = sorted({classes[label] for label in trained.tolist() if label >= len(self.classes)})
        if new:
            raise new_classes_of_train(new)
        return self.num_train_classes


def new_classes_of_train(names: Sequence[str]) -> DataError:
    """Make the error for classes that cannot get a label."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return DataError(
        f"new classes where splits have no class in common: {', '.join(names[:_NAMED])}{more};"
        " those of train have the first labels, and labels of a store do not change",
        remedy="prepare anew, without append=true",
    )


def _with_labels(origins: Sequence[Origins], labels: Ints, split: int) -> Origins:
    width = max(part.dtype["path"].itemsize for part in origins)
    fields = [("path", f"S{width}"), ("size", "<i8"), ("changed", "<i8"), ("label", "<i8")]
    rows = np.empty(len(labels), [*fields, ("split", "<i8")])
    for name in ("path", "size", "changed"):
        rows[name] = np.concatenate([part[name] for part in origins])
    rows["label"], rows["split"] = labels, split
    return rows


@dataclass(frozen=True)
class Difference:
    """What a source has now, against what a store was made from.

    Attributes:
        new: [N] whether the store lacks a picture of the source.
        kept: Pictures that both have, unchanged.
        removed: Paths of pictures that only the store has.
        changed: Paths of pictures that were changed since, or have another label or split.
    """

    new: npt.NDArray[np.bool_]
    kept: int
    removed: list[str]
    changed: list[str]

    @property
    def grown(self) -> bool:
        """Whether the source has all that it had, unchanged."""
        return not self.removed and not self.changed

    def require_grown(self, store: Path) -> None:
        """Refuse a source that lost or changed what the store holds.

        Args:
            store: The store, for the message.

        Raises:
            DataError: It did; the first pictures are named.
        """
        if self.grown:
            return
        faults = []
        for what, paths in (("removed", self.removed), ("changed", self.changed)):
            if paths:
                listed = "".join(f"\n    {path}" for path in paths[:_NAMED])
                more = f"\n    and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
                faults.append(f"{len(paths)} image(s) of it were {what} since:{listed}{more}")
        raise DataError(
            "the store cannot be appended to: " + "\n  ".join(faults),
            where=store,
            remedy="restore them; or prepare anew, without append=true: images are split anew then",
        )


def compare(
    held: Origins, paths: Paths, versions: Callable[[Ints], Ints], labels: Ints, splits: Ints | None
) -> Difference:
    """Compare what a store was made from with what is there now.

    Args:
        held: Rows of the store.
        paths: [N] of the source.
        versions: Returns sizes and times of change, [n, 2], of the pictures with these numbers.
        labels: [N] as the store numbers them; -1: a class that it has not.
        splits: [N] numbers in `SPLITS`, where the source gives them.
    """
    held = np.sort(held, order="path")
    place = np.searchsorted(held["path"], paths).clip(max=len(held) - 1)
    new = held["path"][place] != paths
    there = np.flatnonzero(~new)
    place = place[there]
    then = np.stack([held["size"][place], held["changed"][place]], axis=1)
    differs = (versions(there) != then).any(axis=1) | (labels[there] != held["label"][place])
    if splits is not None:
        differs |= splits[there] != held["split"][place]
    gone = np.ones(len(held), dtype=bool)
    gone[place] = False
    return Difference(
        new=new,
        kept=int((~differs).sum()),
        removed=_texts(held["path"][gone]),
        changed=_texts(held["path"][place[differs]]),
    )


def _texts(paths: Paths) -> list[str]:
    return [path.decode("utf-8", "surrogateescape") for path in paths.tolist()]
