"""Source -> store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.atomic import locked, sha256_json, write_json
from arcloop.data.shards import SplitWriter
from arcloop.data.source import Source
from arcloop.data.store import CLASSES
from arcloop.data.workers import available_workers
from arcloop.errors import ArtifactError, DataError
from arcloop.progress import track

_KEY_DIGITS = 16
_NAMED = 100


def store_key(source: Source) -> str:
    """Return what names a store: the same for the same settings and the same source content.

    Raises:
        DataError: The source is not there.
    """
    return _key(source, source.fingerprint())


def _key(source: Source, fingerprint: str) -> str:
    parts = [type(source).__name__, source.settings(), fingerprint]
    return sha256_json(parts)[:_KEY_DIGITS]


def prepare(source: Source, path: Path, *, workers: int | None = None) -> Artifact:
    """Write the store of a source, or return the one that is there already.

    Args:
        source: Where images and labels come from.
        path: Folder of the `store`.
        workers: Processes that decode; None: one a core.

    Raises:
        DataError: The source is missing, damaged, or cannot be split as its settings ask.
        ArtifactError: Another store is at `path`, or this one was damaged.
        ResourceError: The disk is full or not writable.
    """
    fingerprint = source.fingerprint()
    if there := _there_already(path, _key(source, fingerprint)):
        return there
    with locked(path):  # every process of a node starts here: one writes, the others wait
        if there := _there_already(path, _key(source, fingerprint)):
            return there
        return _write(source, fingerprint, path, workers or available_workers())


def _there_already(path: Path, key: str) -> Artifact | None:
    if not artifacts.exists(path):
        return None
    there = artifacts.load(path, "store")
    if there.info["key"] != key:
        raise ArtifactError(
            "the store here is of another source, or of other settings",
            where=path,
            remedy="choose another folder, or delete this one",
        )
    return there


def _write(source: Source, fingerprint: str, path: Path, workers: int) -> Artifact:
    listing = source.open()
    with artifacts.writing(path, "store", config=asdict(source)) as draft:
        writers = {
            split: SplitWriter(draft.path / split, rows, source.shard_rows, listing.image_shape)
            for split, rows in listing.rows.items()
        }
        for writer in writers.values():
            writer.allocate()
        with track("prepare", sum(listing.rows.values())) as advance:
            dropped = listing.fill(writers, advance, workers)
        for split, rows in dropped.items():
            if len(rows) == writers[split].rows:
                raise DataError(
                    f"not one image of {split} can be read",
                    where=next(iter(rows.values())),
                    remedy="check the files' format",
                )
            writers[split] = writers[split].without(list(rows))
        write_json(draft.path / CLASSES, listing.classes)
        splits = {
            split: {"rows": writer.rows, "shards": writer.shards}
            for split, writer in writers.items()
        }
        if listing.leave_one_out:
            splits["query"] = splits["gallery"]
        draft.info |= {
            "key": _key(source, fingerprint),
            "source": fingerprint,
            "classes": len(listing.classes),
            "train_classes": listing.num_train_classes,
            "leave_one_out": listing.leave_one_out,
            "image_shape": list(listing.image_shape),
            "splits": splits,
            "skipped": _skipped(dropped),
        }
        draft.count = sum(writer.rows for writer in writers.values())
    return artifacts.load(path, "store")


def _skipped(dropped: Mapping[str, Mapping[int, str]]) -> dict[str, Any]:
    names = [name for rows in dropped.values() for name in rows.values()]
    return {"count": len(names), "names": names[:_NAMED]}
