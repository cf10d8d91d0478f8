"""Source: any data set in MNIST's format, four IDX files in one folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arcloop.atomic import sha256_file, sha256_json
from arcloop.data.idx_file import read_all, read_blocks, read_shape, readable
from arcloop.data.shards import SplitWriter, rows_per_block
from arcloop.data.source import SPLITS, Listing, Source, existing_root
from arcloop.data.splits import stratify
from arcloop.errors import DataError
from arcloop.quantities import Fraction, NonNegativeInt, PositiveInt

Bytes = npt.NDArray[np.uint8]

_PARTS = {"train": "train", "t10k": "test"}  # prefix of the file names -> what it is called


@dataclass(kw_only=True)
class IdxSource(Source):
    """The training file is split, seeded and stratified; the test file (t10k) is the query split.

    Attributes:
        root: Folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte
            and t10k-labels-idx1-ubyte, each plain or with ".gz".
        val: Rows of the training file (int) or share of it (float) that select the checkpoint.
        gallery: Rows or share of the training file that fill the index.
        split_seed: Of the draw.
    """

    root: str
    val: PositiveInt | Fraction
    gallery: PositiveInt | Fraction
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
        encoded = joined.astype(np.uint8)
        return IdxListing(
            classes=[str(name) for name in names],
            image_shape=(height, width, 1),
            images={part: files[part, "images"] for part in _PARTS},
            labels=dict(zip(_PARTS, np.split(encoded, [len(labels["train"])]), strict=True)),
            split=self._split(encoded[: len(labels["train"])], names),
        )

    def _split(self, labels: Bytes, names: Bytes) -> Bytes:
        """Return the number in `SPLITS` of each row of the training file."""
        present, encoded = np.unique(labels, return_inverse=True)
        sizes = {"val": self.val, "gallery": self.gallery}
        classes = [str(names[label]) for label in present]
        split = np.empty(len(labels), dtype=np.uint8)
        for name, rows in stratify(encoded, classes, sizes, self.split_seed, self.root).items():
            split[rows] = SPLITS.index(name)
        return split


@dataclass
class IdxListing(Listing):
    """The files, their labels, and where each row of the training file belongs."""

    classes: list[str]
    image_shape: tuple[int, int, int]
    images: Mapping[str, Path]
    labels: Mapping[str, Bytes]
    split: Bytes

    def __post_init__(self) -> None:
        counts = np.bincount(self.split, minlength=len(SPLITS))
        counts[SPLITS.index("query")] = len(self.labels["t10k"])
        self.rows = dict(zip(SPLITS, counts.tolist(), strict=True))

    def fill(
        self,
        writers: Mapping[str, SplitWriter],
        advance: Callable[[int], None],
        workers: int,
    ) -> Mapping[str, Mapping[int, str]]:
        everything = np.full(len(self.labels["t10k"]), SPLITS.index("query"), np.uint8)
        for part, split in {"train": self.split, "t10k": everything}.items():
            first = 0  # row of the file
            written = dict.fromkeys(SPLITS, 0)
            for images in read_blocks(self.images[part], 3, rows_per_block(self.image_shape)):
                block = slice(first, first + len(images))
                for name, writer in writers.items():
                    chosen = split[block] == SPLITS.index(name)
                    labels = self.labels[part][block][chosen].astype(np.int64)
                    writer.write(written[name], images[chosen, ..., np.newaxis], labels)
                    written[name] += len(labels)
                first = block.stop
                advance(len(images))
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
