"""Preparation: writes the store of a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import sha256_json, write_json
from arcloop.artifacts.locks import file_lock
from arcloop.artifacts.writer import write_artifact
from arcloop.data.append import (
    KEY_DIGITS,
    AppendPlan,
    plan_append,
    require_appendable,
    settings_key,
)
from arcloop.data.sources.base import Listing, Source
from arcloop.data.store.jpeg import JpegSplitWriter
from arcloop.data.store.shards import SplitWriter
from arcloop.data.store.source_files import source_files_name
from arcloop.data.store.store import CLASSES
from arcloop.display.terminal import print_line, track
from arcloop.errors import ArtifactError, DataError

_SKIPPED_NAMES = 100  # in the manifest


def store_key(source: Source) -> str:
    """Return the key of a source's store. It depends on the settings and content of the source.

    Raises:
        DataError: The source does not exist.
    """
    return _make_key(source, source.fingerprint())


def _make_key(source: Source, fingerprint: str) -> str:
    parts = [type(source).__name__, source.settings(), fingerprint]
    return sha256_json(parts)[:KEY_DIGITS]


def prepare(
    source: Source, path: Path, *, append: bool = False, workers: int | None = None
) -> Artifact:
    """Write the store of a source, or return the existing one.

    Args:
        source: The source of images and labels.
        path: Folder of the `store`.
        append: Start from the store in the parent folder of `path` that contains most images of the
            source. Its shards are hard-linked, and the new images are written to new shards. If
            there is no such store, the whole source is read.
        workers: Number of processes that decode images; None for one per CPU.

    Returns:
        The verified store.

    Raises:
        ConfigError: The source cannot be appended to.
        DataError: The source is missing or damaged, or cannot be split according to its settings.
            With `append`: images of the store were removed from the source or changed.
        ArtifactError: Another store is at `path`, or the store is damaged.
        ResourceError: The disk is full or not writable, or a worker process died.
    """
    if append:
        require_appendable(source)
    fingerprint = source.fingerprint()
    if existing := _existing_store(path, _make_key(source, fingerprint), append):
        return existing
    with file_lock(path):  # one process of the node writes, the others wait
        if existing := _existing_store(path, _make_key(source, fingerprint), append):
            return existing
        listing, plan = source.open(), None
        if append:
            plan = plan_append(source, listing, path.parent)
            _report_plan(plan)
        return _write_store(source, fingerprint, listing, plan, path, workers or joblib.cpu_count())


def _existing_store(path: Path, key: str, append: bool) -> Artifact | None:
    if not artifacts.exists(path):
        return None
    store = artifacts.load(path, "store")
    if store.info["key"] != key:
        remedy = "choose another folder, or delete this one"
        if append:
            remedy = "append=true writes a new store: pass another store_dir in the same folder"
        raise ArtifactError(
            "this store was made from another source, or with other settings",
            where=path,
            remedy=remedy,
        )
    return store


def _report_plan(plan: AppendPlan | None) -> None:
    if plan is None:
        print_line("append: no store contains images of this source; the whole source is prepared")
        return
    rows = ", ".join(f"{split} {rows}" for split, rows in plan.new.rows.items())
    print_line(f"append: {sum(plan.new.rows.values())} new images ({rows}) to {plan.store.path}")


def _write_store(
    source: Source,
    fingerprint: str,
    listing: Listing,
    plan: AppendPlan | None,
    path: Path,
    workers: int,
) -> Artifact:
    parents = {"store": plan.store.sha256} if plan else {}
    listing = plan.new if plan else listing
    with write_artifact(path, "store", config=asdict(source), parents=parents) as output:
        writers = {
            split: _make_writer(source, listing, output.path, split, plan) for split in listing.rows
        }
        for writer in writers.values():
            writer.allocate()
        with track("prepare", sum(listing.rows.values())) as advance:
            dropped = listing.write(writers, advance, workers)
        for split, writer in writers.items():
            bad = dropped.get(split, {})
            if bad and len(bad) == writer.rows and plan is None:
                raise DataError(
                    f"no image of {split} can be read",
                    where=next(iter(bad.values())),
                    remedy="check the format of the files",
                )
            writers[split] = writer.finish(sorted(bad))
            _write_source_files(listing, split, sorted(bad), writers[split])
        if plan:
            plan.link_shards(output)
        write_json(output.path / CLASSES, listing.classes)
        splits = {split: _split_info(split, w, plan) for split, w in writers.items()}
        if listing.leave_one_out:
            splits["query"] = splits["gallery"]
        output.info |= {
            "key": _make_key(source, fingerprint),
            "settings": settings_key(source),
            "source": fingerprint,
            "classes": len(listing.classes),
            "train_classes": listing.num_train_classes,
            "leave_one_out": listing.leave_one_out,
            "image_shape": list(listing.image_shape),
            "encoding": source.encoding,
            "splits": splits,
            "appended": {split: w.rows for split, w in writers.items()} if plan else None,
            "skipped": _skipped_info(dropped),
        }
        output.count = sum(writer.rows for writer in writers.values())
    return artifacts.load(path, "store")


def _make_writer(
    source: Source, listing: Listing, store: Path, split: str, plan: AppendPlan | None
) -> SplitWriter:
    first_shard = plan.first_shard(split) if plan else 0
    place = (
        store / split, listing.rows[split], source.shard_rows, listing.image_shape, first_shard
    )  # fmt: skip
    if source.encoding == "jpeg":
        return JpegSplitWriter(*place, quality=source.jpeg_quality)
    return SplitWriter(*place)


def _write_source_files(
    listing: Listing, split: str, dropped: Sequence[int], writer: SplitWriter
) -> None:
    """Write the table of source files of each shard, for the rows that were not dropped."""
    num_rows = writer.rows + len(dropped)
    kept = np.delete(np.arange(num_rows), np.asarray(dropped, np.int64))
    first = 0
    for shard, rows in writer.numbered_shards:
        table = listing.source_files(split, kept[first : first + rows])
        if table is None:
            return
        np.save(writer.folder / source_files_name(shard), table)
        first += rows


def _split_info(split: str, writer: SplitWriter, plan: AppendPlan | None) -> dict[str, Any]:
    before: list[int] = plan.store.info["splits"][split]["shards"] if plan else []
    return {"rows": sum(before) + writer.rows, "shards": [*before, *writer.shards]}


def _skipped_info(dropped: Mapping[str, Mapping[int, str]]) -> dict[str, Any]:
    names = [name for rows in dropped.values() for name in rows.values()]
    return {"count": len(names), "names": names[:_SKIPPED_NAMES]}
