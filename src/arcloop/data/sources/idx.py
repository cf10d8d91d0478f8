"""Source: any data set in MNIST's format, four IDX files in one folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from arcloop.artifacts.atomic import sha256_file, sha256_json
from arcloop.config.value_types import Fraction, NonNegativeInt, PositiveInt
from arcloop.data.sources.base import SPLITS, Listing, Source, existing_root
from arcloop.data.sources.idx_file import read_all, read_blocks, read_shape, readable
from arcloop.data.sources.workers import Workers
from arcloop.data.splits.disjoint import Division, disjoint
from arcloop.data.splits.stratified import stratify
from arcloop.data.store.shards import SplitWriter, rows_per_block
from arcloop.errors import DataError

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_PARTS = {"train": "train", "t10k": "test"}  # prefix of the file names -> what it is called
_LEFT_OUT = 255


@dataclass(kw_only=True)
class IdxSource(Source):
    """The training file trains and selects; the test file (t10k) judges.

    Attributes:
        root: Folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte
            and t10k-labels-idx1-ubyte, each plain or with ".gz".
        split: "stratified": the training file is shared out, class by class, over train, val and
            gallery, and the test file is the query split. "disjoint": train and val are the images
            of their classes in the training file, gallery those of its classes in the test file,
            and also the query split, by leave-one-out. All other images are left out.
        val: If stratified, rows of the training file (int) or share of it (float) that select the
            checkpoint.
        gallery: If stratified, rows or share of the training file that fill the index.
        val_classes: If disjoint, classes (int) or share of all classes (float) of val.
        test_classes: If disjoint, classes or share that fill the index and judge.
        split_seed: Of the draw.
    """

    root: str
    split: Literal["stratified", "disjoint"]
    val: PositiveInt | Fraction
    gallery: PositiveInt | Fraction
    val_classes: PositiveInt | Fraction
    test_classes: PositiveInt | Fraction
    split_seed: NonNegativeInt

    def fingerprint(self) -> str:
        return sha256_json(list(self.files().values()))

    def files(self) -> dict[str, str]:
        hashes = {}
        for file in _files(self.root).values():
            with readable(file):
                hashes[str(file)] = sha256_file(file)
        return hashes

    def open(self) -> Listing:
        files = _files(self.root)
        shapes = {part: read_shape(files[part, "images"], 3) for part in _PARTS}
        labels = {part: read_all(files[part, "labels"], 1) for part in _PARTS}
        for part, name in _PARTS.items():
            if shapes[part][0] != len(labels[part]):
                raise DataError(
                    f"{shapes[part][0]} {name} images but {len(labels[part])} labels",
                    where=files[part, "images"].parent,
                    remedy="take images and labels of the same set",
                )
        if shapes["train"][1:] != shapes["t10k"][1:]:
            raise DataError(
                f"training images are {shapes['train'][1:]} pixels, test images"
                f" {shapes['t10k'][1:]}",
                where=files["t10k", "images"],
                remedy="take both files of the same set",
            )
        _, height, width = shapes["train"]
        names, joined = np.unique(np.concatenate(list(labels.values())), return_inverse=True)
        classes = [str(name) for name in names]
        encoded = np.split(joined, [len(labels["train"])])
        rows, division = self._divide(encoded[0], encoded[1], classes)
        new_label = division.new_label.astype(np.uint8)
        return IdxListing(
            classes=[classes[label] for label in division.order.tolist()],
            image_shape=(height, width, 1),
            images={part: files[part, "images"] for part in _PARTS},
            labels={p: new_label[of_part] for p, of_part in zip(_PARTS, encoded, strict=True)},
            split=rows,
            num_train_classes=division.num_train_classes,
            leave_one_out=division.leave_one_out,
        )

    def _divide(
        self, train: Ints, test: Ints, classes: list[str]
    ) -> tuple[dict[str, Bytes], Division]:
        """Return the number in `SPLITS` of each row of either file, and what it comes from."""
        everything = np.concatenate([train, test])
        in_train = np.arange(len(everything)) < len(train)
        if self.split == "disjoint":
            division = disjoint(
                everything,
                classes,
                val_classes=self.val_classes,
                test_classes=self.test_classes,
                seed=self.split_seed,
                where=self.root,
            )
            kept = {
                split: rows[in_train[rows] if split != "gallery" else ~in_train[rows]]
                for split, rows in division.rows.items()
            }
        else:
            present, encoded = np.unique(train, return_inverse=True)
            sizes = {"val": self.val, "gallery": self.gallery}
            there = [classes[label] for label in present.tolist()]
            kept = stratify(encoded, there, sizes, self.split_seed, self.root)
            kept |= {"query": np.flatnonzero(~in_train)}
            division = Division(kept, np.arange(len(classes)), len(classes))
        split = np.full(len(everything), _LEFT_OUT, np.uint8)
        for name, rows in kept.items():
            split[rows] = SPLITS.index(name)
        return {"train": split[in_train], "t10k": split[~in_train]}, division


@dataclass
class IdxListing(Listing):
    """The files, their labels, and where each row of a file belongs: a number in `SPLITS`."""

    classes: list[str]
    image_shape: tuple[int, int, int]
    images: Mapping[str, Path]
    labels: Mapping[str, Bytes]
    split: Mapping[str, Bytes]
    num_train_classes: int
    leave_one_out: bool

    def __post_init__(self) -> None:
        everything = np.concatenate(list(self.split.values()))
        counts = np.bincount(everything[everything != _LEFT_OUT], minlength=len(SPLITS))
        stored = SPLITS[:-1] if self.leave_one_out else SPLITS
        self.rows = dict(zip(stored, counts.tolist(), strict=False))

    def fill(
        self,
        writers: Mapping[str, SplitWriter],
        advance: Callable[[int], None],
        workers: Workers,
    ) -> Mapping[str, Mapping[int, str]]:
        for part, split in self.split.items():
            first = 0  # row of the file
            written = dict.fromkeys(SPLITS, 0)  # no split has rows of both files
            for images in read_blocks(self.images[part], 3, rows_per_block(self.image_shape)):
                block = slice(first, first + len(images))
                for name, writer in writers.items():
                    chosen = split[block] == SPLITS.index(name)
                    labels = self.labels[part][block][chosen].astype(np.int64)
                    writer.write(written[name], images[chosen, ..., np.newaxis], labels)
                    written[name] += len(labels)
                    advance(len(labels))
                first = block.stop
        return {}


def _files(root: str) -> dict[tuple[str, str], Path]:
    """Find the four files, by part ("train", "t10k") and kind ("images", "labels")."""
    folder = existing_root(root)
    files, missing = {}, []
    for part in _PARTS:
        for kind, dimensions in (("images", 3), ("labels", 1)):
            plain = folder / f"{part}-{kind}-idx{dimensions}-ubyte"
            found = [
                file for file in (plain, plain.with_name(plain.name + ".gz")) if file.is_file()
            ]
            if found:
                files[part, kind] = found[0]
            else:
                missing.append(f"{plain.name}[.gz]")
    if missing:
        raise DataError(
            f"missing: {', '.join(missing)}",
            where=folder.absolute(),
            remedy="put the four standard files of an MNIST-format set there, or correct data.root",
        )
    return files
