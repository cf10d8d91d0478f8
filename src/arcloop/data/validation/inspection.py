"""Reads all files of a store once, and collects class counts, sample images and faults."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from arcloop.artifacts import Artifact
from arcloop.data.splits import SPLITS
from arcloop.data.store.shards import NO_GROUP, Images
from arcloop.data.validation.duplicates import ImageHashes, StoredRows
from arcloop.data.validation.files import Ints, ShardFiles, StoreFiles
from arcloop.data.validation.findings import Finding, Findings, Level
from arcloop.errors import list_some

if TYPE_CHECKING:
    from arcloop.config.schema import ValidationSettings

_SAMPLED_CLASSES = 20
_SAMPLES_PER_CLASS = 14


@dataclass
class Inspection:
    """Content and faults of a store.

    Attributes:
        classes: Class names.
        counts: Split -> number of images of each class, [C].
        findings: The faults.
        samples: Label -> a few training images [H, W, C], for the first classes.
        num_train_classes: Number of classes in train. They have the first labels.
        leave_one_out: Whether gallery is also the query split.
        split: `split` of the source, see `Source`.
    """

    classes: list[str]
    counts: dict[str, Ints]
    findings: Findings
    samples: dict[int, list[Images]]
    num_train_classes: int
    leave_one_out: bool
    split: str

    @property
    def is_unknown(self) -> npt.NDArray[np.bool_]:
        """[C] whether a class has images in query only, so that its queries are unknown."""
        known = [counts > 0 for split, counts in self.counts.items() if split != "query"]
        is_unknown: npt.NDArray[np.bool_] = (self.counts["query"] > 0) & ~np.any(known, axis=0)
        return is_unknown


def inspect_store(
    store: Artifact, settings: ValidationSettings, advance: Callable[[int], None]
) -> Inspection:
    """Read every file of a store, one block of images at a time.

    Args:
        store: The store, not verified.
        settings: Conditions that the store must satisfy.
        advance: Called with the number of rows that were read since the last call.
    """
    findings = Findings(settings.max_listed)
    files = StoreFiles(store, findings)
    classes = files.read_classes()
    counts = {split: np.zeros(len(classes), np.int64) for split in SPLITS}
    samples: dict[int, list[Images]] = {
        label: [] for label in range(min(len(classes), _SAMPLED_CLASSES))
    }
    shards = list(files.list_shards())
    leave_one_out = store.info.get("leave_one_out", False)
    empty: list[tuple[ShardFiles, Ints]] = []
    # Near-duplicates are searched among image files only: different digits, or generated images,
    # of a class look alike.
    has_files = "max_value" in store.config
    hashes = ImageHashes(settings.near_duplicate_bits if has_files else None)
    all_labels = np.full(sum(shard.rows for shard in shards), -1, np.int32)
    brightest = 0
    for shard in shards:
        labels = files.read_labels(shard)
        if labels is not None:
            is_valid = (labels >= 0) & (labels < len(classes))
            counts[shard.split] += np.bincount(labels[is_valid], minlength=len(classes))
            all_labels[shard.first_row :][: shard.rows][is_valid] = labels[is_valid]
        for rows, images in files.read_images(shard):
            flat = images.reshape(len(images), -1)
            brightest = max(brightest, int(flat.max(initial=0)))
            is_empty = pixel_std(flat) < settings.min_std
            empty.append((shard, rows[is_empty]))
            # Empty images have their own finding; they are not also reported as duplicates.
            hashes.add(images[~is_empty], shard.first_row + rows[~is_empty])
            if shard.split == "train" and labels is not None:
                _add_samples(samples, images, labels[rows])
        advance(shard.rows)
    stored = StoredRows(shards, files, all_labels, classes, leave_one_out=leave_one_out)
    is_allowed = store.config.get("on_duplicate") == "warn"
    hashes.report(stored, leak="warning" if is_allowed else "error")
    _report_divided_groups(shards, files, findings)
    for name in store.files:
        if Path(name).name.startswith(("origins-", "metadata-")):
            files.check(name)
    if leave_one_out:
        counts["query"] = counts["gallery"]
    _report_empty_images(empty, store, settings, files)
    if brightest < settings.min_brightest:
        findings.add(Finding("error", "brightness", _describe_range(brightest, store)))
    return Inspection(
        classes,
        counts,
        findings,
        samples,
        num_train_classes=store.info.get("train_classes", len(classes)),
        leave_one_out=leave_one_out,
        split=store.config["split"],
    )


def pixel_std(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the standard deviation of the pixels of each image, [N], for images [N, bytes].

    >>> pixel_std(np.array([[7, 7, 7, 7], [0, 0, 2, 2]], np.uint8))
    array([0., 1.], dtype=float32)
    """
    values = images.astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    std: npt.NDArray[np.float32] = np.sqrt(np.einsum("nk,nk->n", values, values) / values.shape[1])
    return std


def _add_samples(samples: Mapping[int, list[Images]], images: Images, labels: Ints) -> None:
    """Copy images of the sampled classes until each has `_SAMPLES_PER_CLASS`."""
    for label, chosen in samples.items():
        missing = _SAMPLES_PER_CLASS - len(chosen)
        if missing:
            chosen += [images[row].copy() for row in np.flatnonzero(labels == label)[:missing]]


def _describe_range(brightest: int, store: Artifact) -> str:
    message = f"the largest value of all pixels is {brightest} of 255"
    if "max_value" not in store.config:
        return f"{message}: lower validation.min_brightest if this is right"
    used = (brightest + 1) * (store.info["max_value"] + 1) // 256  # values in the files
    used = 1 << (used - 1).bit_length()
    return (
        f"{message}. If the files are grey, with 16 bits per pixel and values below {used:,}, pass"
        f" data.max_value={used - 1}; if the images are this dark, lower validation.min_brightest"
    )


def _report_empty_images(
    empty: Sequence[tuple[ShardFiles, Ints]],
    store: Artifact,
    settings: ValidationSettings,
    files: StoreFiles,
) -> None:
    number: Counter[str] = Counter()
    for shard, rows in empty:
        number[shard.split] += len(rows)
    message = f"constant or almost constant: the std of its pixels is below {settings.min_std:g}"
    for shard, rows in empty:
        allowed = settings.max_empty_fraction * store.info["splits"][shard.split]["rows"]
        level: Level = "error" if number[shard.split] > allowed else "warning"
        for row in rows.tolist():
            files.add_image(level, "empty image", message, shard, row)


def _report_divided_groups(
    shards: Sequence[ShardFiles], files: StoreFiles, findings: Findings
) -> None:
    """Report groups that are in several splits, with one warning for each pair of splits."""
    names, groups_of = files.read_group_names(), defaultdict(list)
    for shard in shards:
        groups_of[shard.split].append(files.read_groups(shard))
    for one, other in itertools.combinations(groups_of, 2):
        common = np.intersect1d(np.concatenate(groups_of[one]), np.concatenate(groups_of[other]))
        common = common[common != NO_GROUP].tolist()
        if common:
            named = list_some([repr(names[n]) if n < len(names) else str(n) for n in common])
            message = f"{len(common)} groups are also in {other}: {named}"
            findings.add(Finding("warning", "divided groups", message, one))
