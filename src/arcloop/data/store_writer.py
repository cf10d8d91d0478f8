"""Writes the images of a source, and their labels, groups and files, as a store."""

from __future__ import annotations

import errno
import itertools
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import write_json
from arcloop.artifacts.writer import write_artifact
from arcloop.data.sources import Listing, Source, hash_settings
from arcloop.data.store import CLASSES, GROUPS
from arcloop.data.store.shards import SplitWriter
from arcloop.display.terminal import print_line, print_some, track
from arcloop.errors import DataError
from arcloop.runtime.images import DEFAULT_CONVERSION

_MAX_JPEG_SIDE = 65_500  # limit of libjpeg
_SKIPPED_NAMES = 100  # in the manifest


def write_store(
    source: Source,
    fingerprint: str,
    listing: Listing,
    base: Artifact | None,
    path: Path,
    workers: int,
) -> None:
    """Write the rows of a listing, after the shards of the store `base` if there is one.

    Args:
        source: The source.
        fingerprint: Its fingerprint.
        listing: The images to write.
        base: A store, whose shards are hard-linked.
        path: Folder of the store to write.
        workers: Number of processes that decode images.

    Raises:
        DataError: No image of a split can be read, or the images are too large for JPEG.
        ResourceError: The disk is full, or a worker process died.
    """
    parents = {"store": base.sha256} if base else {}
    shards = {
        split: list(base.info["splits"][split]["shards"]) if base else [] for split in listing.rows
    }
    with write_artifact(path, "store", config=asdict(source), parents=parents) as output:
        _require_storable(source, listing, output.path)
        writers = {
            split: SplitWriter(
                output.path / split,
                source.shard_rows,
                listing.image_shape,
                is_encoded=source.encoding == "jpeg",
                first_shard=len(before),
            )
            for split, before in shards.items()
        }
        skipped, transparent = _write_rows(writers, listing, source, workers)
        written = {split: sum(writer.shards) for split, writer in writers.items()}
        for split in shards:
            shards[split] += writers[split].shards
            if skipped[split] and not shards[split]:
                raise DataError(
                    f"no image of {split} can be read",
                    where=skipped[split][0],
                    remedy="check the format of the files",
                )
        for name in base.files if base else ():
            if base and name not in (CLASSES, GROUPS):
                output.link(base, name)
        write_json(output.path / CLASSES, listing.classes)
        if listing.group_names is not None:
            write_json(output.path / GROUPS, listing.group_names)
        names = list(itertools.chain(*skipped.values()))
        print_some(f"warning: {len(names)} images cannot be read and are skipped:", names, 3)
        splits = {split: {"rows": sum(rows), "shards": rows} for split, rows in shards.items()}
        output.count = sum(written.values())
        output.info |= {
            "key": hash_settings(source, fingerprint),
            "settings": hash_settings(source),
            "source": fingerprint,
            "classes": len(listing.classes),
            "train_classes": listing.num_train_classes,
            "leave_one_out": listing.leave_one_out,
            "image_shape": list(listing.image_shape),
            "encoding": source.encoding,
            "transparent": transparent,
            **getattr(source, "conversion", DEFAULT_CONVERSION).as_dict(),
            "splits": splits | ({"query": splits["gallery"]} if listing.leave_one_out else {}),
            "appended": written if base else None,
            "passed_over": list(listing.passed_over),
            "notices": list(listing.notices),
            "dropped": {
                "count": len(listing.dropped),
                "names": listing.dropped[:_SKIPPED_NAMES],
            },
            "skipped": {"count": len(names), "names": names[:_SKIPPED_NAMES]},
        }


def _write_rows(
    writers: Mapping[str, SplitWriter], listing: Listing, source: Source, workers: int
) -> tuple[dict[str, list[str]], int]:
    """Write all rows of a listing.

    Returns:
        Split -> paths of the skipped images, and the number of images with transparent parts.
    """
    skipped: dict[str, list[str]] = {split: [] for split in writers}
    transparent = 0
    with track("prepare", sum(listing.rows.values())) as advance:
        for block in listing.read(source.encode, workers):
            writers[block.split].append(
                block.images, block.labels, block.files, block.groups, block.metadata
            )
            skipped[block.split] += [path for path, _ in block.unreadable]
            transparent += block.transparent
            advance(len(block.labels) + len(block.unreadable))
    for writer in writers.values():
        writer.close()
    if transparent and getattr(source, "background", "black") is None:
        print_line(
            f"prepare: {transparent} images have transparent parts, which became black;"
            " data.background=white, mean or [R,G,B] selects another colour"
        )
    return skipped, transparent


def _require_storable(source: Source, listing: Listing, folder: Path) -> None:
    """Check the limits of JPEG, and whether the disk has space for the raw images.

    Raises:
        DataError: The images are too large for JPEG.
        OSError: The disk is too full.
    """
    height, width, _ = listing.image_shape
    if source.encoding == "jpeg":
        if max(height, width) > _MAX_JPEG_SIDE:
            raise DataError(
                f"images of {height} x {width} pixels cannot be stored as JPEG, which supports at"
                f" most {_MAX_JPEG_SIDE} pixels per side",
                remedy="pass data.encoding=raw",
            )
        return
    size = sum(listing.rows.values()) * math.prod(listing.image_shape)
    if size > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
