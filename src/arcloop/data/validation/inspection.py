"""One pass over every file of a store: what its rows are, and what is wrong with them."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import sha256_file
from arcloop.data.splits import SPLITS
from arcloop.data.store.shards import Images, Labels
from arcloop.data.store.source_files import SOURCE_FILES
from arcloop.data.store.store import CLASSES
from arcloop.data.validation.duplicates import RowHashes, row_hashes
from arcloop.data.validation.findings import Fault, Faults, Level
from arcloop.data.validation.shard_check import Shard, check_images, check_labels, list_shards

if TYPE_CHECKING:
    from arcloop.config.schema import ValidationSettings

_SAMPLED_CLASSES = 20
_SAMPLES = 14

Ints = npt.NDArray[np.int64]


@dataclass
class Inspection:
    """What one pass found.

    Attributes:
        classes: Class names.
        counts: Split -> [C] images of each class.
        faults: What is wrong.
        samples: Label -> a few training images [H, W, C], for the first classes.
        num_train_classes: Classes that are trained on, the first ones.
        leave_one_out: Whether gallery is also the query split.
    """

    classes: list[str]
    counts: dict[str, Ints]
    faults: Faults
    samples: dict[int, list[Images]]
    num_train_classes: int
    leave_one_out: bool


def inspect(
    store: Artifact, settings: ValidationSettings, advance: Callable[[int], None]
) -> Inspection:
    """Read every file of a store once, in the memory of a block, and collect all that is wrong.

    Args:
        store: The store, not verified.
        settings: What it must satisfy.
        advance: Told how many more rows are done.
    """
    faults = Faults(settings.max_listed)
    classes = _read_classes(store, faults)
    counts = {split: np.zeros(len(classes), np.int64) for split in SPLITS}
    samples: dict[int, list[Images]] = {
        label: [] for label in range(min(len(classes), _SAMPLED_CLASSES))
    }
    shards = list_shards(store)
    leave_one_out = store.info.get("leave_one_out", False)
    blank: list[tuple[Shard, Ints]] = []
    with row_hashes() as hashes:
        for shard in shards:
            labels = check_labels(store, shard, faults)
            if labels is not None:
                valid = labels[(labels >= 0) & (labels < len(classes))]
                counts[shard.split] += np.bincount(valid, minlength=len(classes))
            for start, images in check_images(store, shard, faults):
                flat = images.reshape(len(images), -1)
                rows = np.arange(start, start + len(images))
                full = pixel_std(flat) >= settings.min_std
                blank.append((shard, rows[~full]))
                # Blank images are all alike: they are told of as blank, not as duplicates.
                hashes.add(flat[full], shard.first + rows[full])
                if shard.split == "train" and labels is not None:
                    _sample(samples, images, labels[rows])
            advance(shard.rows)
        _report_equal(hashes, shards, faults, leave_one_out=leave_one_out)
    for name in store.files:
        if Path(name).name.startswith(SOURCE_FILES):
            _whole(store, name, faults)
    if leave_one_out:
        counts["query"] = counts["gallery"]
    _report_blank(blank, store, settings, faults)
    num_train_classes = store.info.get("train_classes", len(classes))
    return Inspection(classes, counts, faults, samples, num_train_classes, leave_one_out)


def pixel_std(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the standard deviation of each image's values, [N], of images [N, bytes].

    >>> pixel_std(np.array([[7, 7, 7, 7], [0, 0, 2, 2]], np.uint8))
    array([0., 1.], dtype=float32)
    """
    values = images.astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    std: npt.NDArray[np.float32] = np.sqrt(np.einsum("nk,nk->n", values, values) / values.shape[1])
    return std


def _read_classes(store: Artifact, faults: Faults) -> list[str]:
    if _whole(store, CLASSES, faults):
        return list(json.loads((store.path / CLASSES).read_bytes()))
    return [f"class {label}" for label in range(store.info["classes"])]


def _whole(store: Artifact, name: str, faults: Faults) -> bool:
    path = store.path / name
    try:
        if sha256_file(path) == store.file_sha256(name):
            return True
        message = "has other contents than when it was written"
    except OSError as cause:
        message = f"cannot be read: {cause.strerror}"
    faults.add(Fault(level="error", check="checksum", message=message, file=name))
    return False


def _sample(samples: Mapping[int, list[Images]], images: Images, labels: Labels) -> None:
    """Keep the first images of the classes there is room for."""
    for label, kept in samples.items():
        wanted = _SAMPLES - len(kept)
        if wanted:
            kept += [images[row].copy() for row in np.flatnonzero(labels == label)[:wanted]]


def _report_blank(
    blank: Sequence[tuple[Shard, Ints]],
    store: Artifact,
    settings: ValidationSettings,
    faults: Faults,
) -> None:
    number: Counter[str] = Counter()
    for shard, rows in blank:
        number[shard.split] += len(rows)
    for shard, rows in blank:
        bearable = settings.max_empty_fraction * store.info["splits"][shard.split]["rows"]
        for row in rows.tolist():
            faults.add(
                Fault(
                    level="error" if number[shard.split] > bearable else "warning",
                    check="empty image",
                    message=f"constant or nearly so: its pixels' std is below {settings.min_std:g}",
                    split=shard.split,
                    file=shard.images,
                    row=row,
                )
            )


def _report_equal(
    hashes: RowHashes, shards: Sequence[Shard], faults: Faults, *, leave_one_out: bool
) -> None:
    """Report equal images: across splits an error for each pair of splits, within one a warning.

    By leave-one-out, a second image of gallery is another row than the query's own, and would be
    found: an error, as it is between gallery and query.
    """
    starts = np.array([shard.first for shard in shards])
    splits = np.array([shard.split for shard in shards])

    def report(level: Level, check: str, row: int, same: int) -> None:
        numbers = np.searchsorted(starts, (row, same), side="right") - 1
        shard, other = (shards[number] for number in numbers.tolist())
        faults.add(
            Fault(
                level=level,
                check=check,
                message=f"the same image as {other.images} row {same - other.first}",
                split=shard.split,
                file=shard.images,
                row=row - shard.first,
            )
        )

    for group in hashes.groups():
        of_split = splits[np.searchsorted(starts, group, side="right") - 1]
        firsts = []
        for split in np.unique(of_split):
            first, *others = group[of_split == split].tolist()
            firsts.append(first)
            for row in others:
                if leave_one_out and split == "gallery":
                    report("error", "leak", row, first)
                else:
                    report("warning", "duplicate", row, first)
        for one, other in itertools.combinations(sorted(firsts), 2):
            report("error", "leak", other, one)
