"""Source of data sets in the format of MNIST: four IDX files in one folder.

Format: http://yann.lecun.com/exdb/mnist. Two zero bytes, type of the values (0x08: uint8), number
of dimensions, each dimension as a big-endian int32, then the values.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from arcloop.artifacts.atomic import sha256_file, sha256_json
from arcloop.config.value_types import Fraction, NonNegativeInt, PositiveInt
from arcloop.data.sources import Encode, Listing, RowBlock, Source, existing_root
from arcloop.data.splits import SPLITS
from arcloop.data.splits.disjoint import SplitAssignment, split_by_class
from arcloop.data.splits.stratified import stratify
from arcloop.data.store.shards import rows_per_block
from arcloop.errors import DataError

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_PARTS = {"train": "train", "t10k": "test"}  # prefix of the file names -> name in messages
_UNUSED = 255
_LABELS_PER_READ = 1 << 20
_RESTORE = "restore the file from its origin"


@dataclass(kw_only=True)
class IdxSource(Source):
    """Source of four IDX files: images and labels of a training set and of a test set (t10k).

    Attributes:
        root: Folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte
            and t10k-labels-idx1-ubyte, each plain or with ".gz".
        split: "stratified": each class of the training set is divided over train, val and gallery,
            and the test set is the query split. "disjoint": the splits have no common class; train
            and val take the images of their classes from the training set, gallery from the test
            set, and gallery is also the query split, with leave-one-out. Other images are unused.
        val: If stratified, rows (int) or fraction (float) of the training set for val.
        gallery: If stratified, rows or fraction of the training set for gallery.
        val_classes: If disjoint, classes (int) or fraction of all classes (float) for val.
        test_classes: If disjoint, classes or fraction for gallery.
        split_seed: Seed of the random assignment.
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
        for file in _find_files(self.root).values():
            with _read_errors(file):
                hashes[str(file)] = sha256_file(file)
        return hashes

    def open(self) -> Listing:
        files = _find_files(self.root)
        shapes = {part: _read_shape(files[part, "images"], 3) for part in _PARTS}
        labels = {part: read_labels(files[part, "labels"]) for part in _PARTS}
        for part, name in _PARTS.items():
            if shapes[part][0] != len(labels[part]):
                raise DataError(
                    f"{shapes[part][0]} {name} images but {len(labels[part])} labels",
                    where=files[part, "images"].parent,
                    remedy="use images and labels of the same data set",
                )
        if shapes["train"][1:] != shapes["t10k"][1:]:
            raise DataError(
                f"training images have {shapes['train'][1:]} pixels, test images"
                f" {shapes['t10k'][1:]}",
                where=files["t10k", "images"],
                remedy="use training and test images of the same data set",
            )
        _, height, width = shapes["train"]
        names, positions = np.unique(np.concatenate(list(labels.values())), return_inverse=True)
        classes = [str(name) for name in names]
        train, test = np.split(positions, [len(labels["train"])])
        splits = self._split(train, test, classes)
        new_labels = splits.new_labels.astype(np.uint8)
        split_of_row = np.full(len(positions), _UNUSED, np.uint8)
        for split, rows in splits.rows.items():
            split_of_row[rows] = SPLITS.index(split)
        return IdxListing(
            classes=[classes[position] for position in splits.class_order.tolist()],
            image_shape=(height, width, 1),
            images={part: files[part, "images"] for part in _PARTS},
            labels={"train": new_labels[train], "t10k": new_labels[test]},
            split={"train": split_of_row[: len(train)], "t10k": split_of_row[len(train) :]},
            num_train_classes=splits.num_train_classes,
            leave_one_out=splits.leave_one_out,
        )

    def _split(self, train: Ints, test: Ints, classes: list[str]) -> SplitAssignment:
        """Split the rows of both files; test rows are numbered after the training rows."""
        if self.split == "stratified":
            present, positions = np.unique(train, return_inverse=True)
            sizes = {"val": self.val, "gallery": self.gallery}
            names = [classes[position] for position in present.tolist()]
            rows = stratify(positions, names, sizes, self.split_seed, self.root)
            rows["query"] = np.arange(len(train), len(train) + len(test))
            return SplitAssignment.with_shared_classes(rows, len(classes))
        splits = split_by_class(
            np.concatenate([train, test]),
            classes,
            val_classes=self.val_classes,
            test_classes=self.test_classes,
            seed=self.split_seed,
            where=self.root,
        )
        rows = {
            split: rows[rows >= len(train) if split == "gallery" else rows < len(train)]
            for split, rows in splits.rows.items()
        }
        return SplitAssignment(rows, splits.class_order, splits.num_train_classes)


@dataclass
class IdxListing(Listing):
    """The image files, and the label and split of each of their rows.

    Attributes:
        images: Prefix of the file names -> file of images.
        labels: Prefix -> [N] labels.
        split: Prefix -> [N] positions in `SPLITS`, or 255 for an unused row.
    """

    classes: list[str]
    image_shape: tuple[int, int, int]
    images: Mapping[str, Path]
    labels: Mapping[str, Bytes]
    split: Mapping[str, Bytes]
    num_train_classes: int
    leave_one_out: bool

    def __post_init__(self) -> None:
        split_of_row = np.concatenate(list(self.split.values()))
        counts = np.bincount(split_of_row[split_of_row != _UNUSED], minlength=len(SPLITS))
        stored = SPLITS[:-1] if self.leave_one_out else SPLITS
        self.rows = dict(zip(stored, counts.tolist(), strict=False))

    def read(self, encode: Encode, workers: int) -> Iterator[RowBlock]:
        for part, split_of_row in self.split.items():
            first = 0  # first row of the block in the file
            for images in read_blocks(self.images[part], 3, rows_per_block(self.image_shape)):
                block = slice(first, first + len(images))
                for name in self.rows:
                    chosen = split_of_row[block] == SPLITS.index(name)
                    labels = self.labels[part][block][chosen].astype(np.int64)
                    yield RowBlock(name, encode(images[chosen, ..., np.newaxis]), labels)
                first = block.stop


def _find_files(root: str) -> dict[tuple[str, str], Path]:
    """Find the four files, by part ("train", "t10k") and kind ("images", "labels")."""
    folder = existing_root(root)
    files, missing = {}, []
    for part in _PARTS:
        for kind, dimensions in (("images", 3), ("labels", 1)):
            plain = folder / f"{part}-{kind}-idx{dimensions}-ubyte"
            packed = plain.with_name(plain.name + ".gz")
            if plain.is_file() or packed.is_file():
                files[part, kind] = plain if plain.is_file() else packed
            else:
                missing.append(f"{plain.name}[.gz]")
    if missing:
        raise DataError(
            f"missing: {', '.join(missing)}",
            where=folder.absolute(),
            remedy="put the four files of the data set there, or correct data.root",
        )
    return files


def read_labels(path: Path) -> Bytes:
    """Read the labels of an IDX file of one dimension, uint8 [N].

    Raises:
        DataError: The file is not in this format, or is shorter or longer than its header says.
    """
    return np.concatenate(list(read_blocks(path, 1, _LABELS_PER_READ)))


def read_blocks(path: Path, dimensions: int, rows: int) -> Iterator[Bytes]:
    """Read an IDX file of uint8 from start to end.

    Args:
        path: The file; it is decompressed if its name ends in ".gz".
        dimensions: Number of dimensions that it must have; the first counts rows.
        rows: Rows in a block.

    Yields:
        uint8 [`rows`, ...]; the last block may have fewer rows.

    Raises:
        DataError: The file is not in this format, or is shorter or longer than its header says.
    """
    with _open(path) as file:
        total, *shape = _read_header(file, path, dimensions)
        row_bytes = math.prod(shape)
        for start in range(0, total, rows):
            count = min(rows, total - start)
            with _read_errors(path):
                content = file.read(count * row_bytes)
            if len(content) < count * row_bytes:
                raise DataError(
                    f"short file: it ends in row {start + len(content) // row_bytes}"
                    f" of the {total} rows in its header",
                    where=path,
                    remedy=_RESTORE,
                )
            yield np.frombuffer(content, np.uint8).reshape(count, *shape)
        with _read_errors(path):
            if file.read(1):
                raise DataError(
                    f"the file continues after the {total} rows in its header",
                    where=path,
                    remedy=_RESTORE,
                )


def _read_shape(path: Path, dimensions: int) -> tuple[int, ...]:
    with _open(path) as file:
        return _read_header(file, path, dimensions)


def _open(path: Path) -> io.BufferedReader:
    with _read_errors(path):
        # BufferedReader fills a whole buffer; GzipFile may fill only a part of it.
        return io.BufferedReader(gzip.open(path)) if path.suffix == ".gz" else open(path, "rb")


def _read_header(file: io.BufferedReader, path: Path, dimensions: int) -> tuple[int, ...]:
    with _read_errors(path):
        header = file.read(4 + 4 * dimensions)
    magic = bytes([0, 0, 8, dimensions])
    if header[:4] != magic:
        raise DataError(
            f"wrong magic number {header[:4].hex() or '(empty file)'}: an IDX file of"
            f" {'images' if dimensions == 3 else 'labels'} starts with {magic.hex()}",
            where=path,
            remedy="check that the content of the file matches its name",
        )
    if len(header) < 4 + 4 * dimensions:
        raise DataError("short file: it ends in its header", where=path, remedy=_RESTORE)
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if 0 in shape:
        raise DataError(f"empty: its header has the shape {shape}", where=path, remedy=_RESTORE)
    return shape


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system and of gzip into a `DataError` that names the file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as cause:
        raise DataError(f"damaged gzip file: {cause}", where=path, remedy=_RESTORE) from None
    except OSError as cause:
        raise DataError(
            f"cannot be read: {cause.strerror or cause}", where=path, remedy=_RESTORE
        ) from None
