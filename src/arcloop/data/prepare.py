"""Source -> store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import sha256_json, write_json
from arcloop.artifacts.locks import file_lock
from arcloop.artifacts.writer import write_artifact
from arcloop.data.append import KEY_DIGITS, Base, find_base, require_appendable, settings_key
from arcloop.data.sources.base import Listing, Source
from arcloop.data.sources.workers import Workers
from arcloop.data.store.jpeg import JpegSplitWriter
from arcloop.data.store.shards import SplitWriter
from arcloop.data.store.source_files import origins_file
from arcloop.data.store.store import CLASSES
from arcloop.display.terminal import print_line, track
from arcloop.errors import ArtifactError, DataError
from arcloop.runtime.cpus import available_cpus

_NAMED = 100


def store_key(source: Source) -> str:
    """Return what names a store: the same for the same settings and the same source content.

    Raises:
        DataError: The source is not there.
    """
    return _key(source, source.fingerprint())


def _key(source: Source, fingerprint: str) -> str:
    parts = [type(source).__name__, source.settings(), fingerprint]
    return sha256_json(parts)[:KEY_DIGITS]


def prepare(
    source: Source, path: Path, *, append: bool = False, workers: int | None = None
) -> Artifact:
    """Write the store of a source, or return the one that is there already.

    Args:
        source: Where images and labels come from.
        path: Folder of the `store`.
        append: Start from the store beside `path` that holds most of what the source has: its
            shards are taken over as they are, and images that it lacks are added in shards of their
            own. Without such a store, the whole source is read.
        workers: Processes that decode; None: one a core.

    Raises:
        ConfigError: The source cannot be appended to.
        DataError: The source is missing, damaged, or cannot be split as its settings ask; or, to
            append to it, images that the store holds were removed or changed.
        ArtifactError: Another store is at `path`, or this one was damaged.
        ResourceError: The disk is full or not writable.
    """
    if append:
        require_appendable(source)
    with Workers(workers or available_cpus()) as processes:
        # Of processes started alike, all but one only wait below, and need no help.
        if not artifacts.exists(path) and "LOCAL_WORLD_SIZE" not in os.environ:
            processes.start(source.likely_tasks())
        fingerprint = source.fingerprint()
        if there := _there_already(path, _key(source, fingerprint), append):
            return there
        with file_lock(path):  # every process of a node starts here: one writes, the others wait
            if there := _there_already(path, _key(source, fingerprint), append):
                return there
            listing = source.open()
            base = find_base(source, listing, path.parent) if append else None
            if append:
                _tell(base)
            return _write(source, fingerprint, listing, base, path, processes)


def _there_already(path: Path, key: str, append: bool) -> Artifact | None:
    if not artifacts.exists(path):
        return None
    there = artifacts.load(path, "store")
    if there.info["key"] != key:
        remedy = "choose another folder, or delete this one"
        if append:
            remedy = "an append makes a store of its own: pass another store_dir beside this one"
        raise ArtifactError(
            "the store here is of another source, or of other settings", where=path, remedy=remedy
        )
    return there


def _tell(base: Base | None) -> None:
    if base is None:
        print_line("append: no store holds images of this source yet; all of it is prepared")
        return
    rows = ", ".join(f"{split} {rows}" for split, rows in base.new.rows.items())
    print_line(f"append: {sum(base.new.rows.values())} new images ({rows}) to {base.store.path}")


def _write(
    source: Source,
    fingerprint: str,
    listing: Listing,
    base: Base | None,
    path: Path,
    workers: Workers,
) -> Artifact:
    parents = {"store": base.store.sha256} if base else {}
    listing = base.new if base else listing
    with write_artifact(path, "store", config=asdict(source), parents=parents) as output:
        writers = {
            split: _writer(source, listing, output.path, split, base) for split in listing.rows
        }
        for writer in writers.values():
            writer.allocate()
        with track("prepare", sum(listing.rows.values())) as advance:
            dropped = listing.fill(writers, advance, workers)
        for split, writer in writers.items():
            bad = dropped.get(split, {})
            if bad and len(bad) == writer.rows and base is None:
                raise DataError(
                    f"not one image of {split} can be read",
                    where=next(iter(bad.values())),
                    remedy="check the files' format",
                )
            writers[split] = writer.finish(sorted(bad))
            _write_origins(listing, split, sorted(bad), writers[split])
        if base:
            base.link_shards(output)
        write_json(output.path / CLASSES, listing.classes)
        splits = {split: _split_facts(split, w, base) for split, w in writers.items()}
        if listing.leave_one_out:
            splits["query"] = splits["gallery"]
        output.info |= {
            "key": _key(source, fingerprint),
            "settings": settings_key(source),
            "source": fingerprint,
            "classes": len(listing.classes),
            "train_classes": listing.num_train_classes,
            "leave_one_out": listing.leave_one_out,
            "image_shape": list(listing.image_shape),
            "encoding": source.encoding,
            "splits": splits,
            "appended": {split: w.rows for split, w in writers.items()} if base else None,
            "skipped": _skipped(dropped),
        }
        output.count = sum(split.rows for split in writers.values())
    return artifacts.load(path, "store")


def _writer(
    source: Source, listing: Listing, store: Path, split: str, base: Base | None
) -> SplitWriter:
    first_shard = base.first_shard(split) if base else 0
    place = (
        store / split, listing.rows[split], source.shard_rows, listing.image_shape, first_shard
    )  # fmt: skip
    if source.encoding == "jpeg":
        return JpegSplitWriter(*place, quality=source.jpeg_quality)
    return SplitWriter(*place)


def _write_origins(
    listing: Listing, split: str, dropped: Sequence[int], writer: SplitWriter
) -> None:
    dropped_N = np.asarray(dropped, np.int64)
    kept_before_N = dropped_N - np.arange(len(dropped_N))
    first = 0
    for shard, rows in writer.numbered_shards:
        kept = np.arange(first, first + rows)
        kept += kept_before_N.searchsorted(kept, side="right")  # as many as were dropped before
        origins = listing.origins(split, kept)
        if origins is None:
            return
        np.save(writer.folder / origins_file(shard), origins)
        first += rows


def _split_facts(split: str, writer: SplitWriter, base: Base | None) -> dict[str, Any]:
    before: list[int] = base.store.info["splits"][split]["shards"] if base else []
    return {"rows": sum(before) + writer.rows, "shards": [*before, *writer.shards]}


def _skipped(dropped: Mapping[str, Mapping[int, str]]) -> dict[str, Any]:
    names = [name for rows in dropped.values() for name in rows.values()]
    return {"count": len(names), "names": names[:_NAMED]}
