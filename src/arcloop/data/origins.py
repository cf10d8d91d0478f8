"""`origins-00000.npy`: the file that each row of a shard was read from, as it was then.

So any row can be walked back to its picture, and a store can tell what its source has gained since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop.artifacts import Artifact
from arcloop.data.source import SPLITS
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


def read_origins(store: Artifact) -> Origins | None:
    """Return those of all rows of a store, in no order that means anything; None if it has none."""
    files: list[Path] = []
    for split in SPLITS:
        for shard in range(len(store.info["splits"][split]["shards"])):
            name = f"{split}/{origins_file(shard)}"
            if name not in store.files:
                return None
            files.append(store.path / name)
    parts = [np.load(file) for file in files]
    width = max(part.dtype["path"].itemsize for part in parts)
    dtype = [("path", f"S{width}"), ("size", "<i8"), ("changed", "<i8")]
    return np.concatenate([part.astype(dtype) for part in parts])


@dataclass(frozen=True)
class Difference:
    """What a source has now, against what a store was made from.

    Attributes:
        new: [N] whether the store lacks a picture of the source.
        kept: Pictures that both have, unchanged.
        removed: Paths of pictures that only the store has.
        changed: Paths of pictures that were changed since.
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


def compare(held: Origins, paths: Paths, versions: Callable[[Ints], Ints]) -> Difference:
    """Compare what a store was made from with what is there now.

    Args:
        held: Of the store.
        paths: [N] of the source.
        versions: Returns sizes and times of change, [n, 2], of the pictures with these numbers.
    """
    held = np.sort(held, order="path")
    place = np.searchsorted(held["path"], paths).clip(max=len(held) - 1)
    new = held["path"][place] != paths
    there = np.flatnonzero(~new)
    place = place[there]
    then = np.stack([held["size"][place], held["changed"][place]], axis=1)
    differs = (versions(there) != then).any(axis=1)
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
