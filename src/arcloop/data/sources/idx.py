"""Source of data sets in the format of MNIST: four IDX files in one folder.

Format: http://yann.lecun.com/exdb/mnist. Two zero bytes, type of the values (0x08: uint8), number
of dimensions, each dimension as a big-endian int32, then the values.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arcloop.artifacts.atomic import sha256_file, sha256_json
from arcloop.config.value_types import Fraction, NonNegativeInt, PositiveInt
from arcloop.data.sources import Encode, Listing, RowBlock, Source, existing_root
from arcloop.data.splits import SPLITS
from arcloop.data.splits.disjoint import SplitAssignment, split_by_class
from arcloop.data.splits.stratified import describe_sizes, stratify
from arcloop.data.store.shards import rows_per_block
from arcloop.errors import DataError

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_PARTS = {"train": "train", "t10k": "test"}  # prefix of the file names -> name in messages
_UNUSED = 255
_LABELS_PER_READ = 1 << 20
_RESTORE = "download the file again, or restore it from a copy"


@dataclass(kw_only=True)
class IdxSource(Source):
    """Source of four IDX files: images and labels of a training set and of a test set (t10k).

    With `split=stratified`, each class of the training set is divided over train, val and gallery,
    and the test set is the query split. With `split=disjoint`, train and val take the images of
    their classes from the training set, and gallery from the test set; other images are unused.

    Attributes:
        root: Folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte
            and t10k-labels-idx1-ubyte, each plain or with ".gz".
        val: If stratified, rows (int) or fraction (float) of the training set for val.
        gallery: If stratified, rows or fraction of the training set for gallery.
        split_seed: Seed of the random assignment.
    """

    root: str
    val: PositiveInt | Fraction
    gallery: PositiveInt | Fraction
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
        labels = {
            part: np.concatenate(list(read_blocks(files[part, "labels"], 1, _LABELS_PER_READ)))
            for part in _PARTS
        }
        sizes = []
        for part, name in _PARTS.items():
            with _open(files[part, "images"], 3) as (_, (rows, height, width)):
                sizes.append((height, width))
            if rows != len(labels[part]):
                raise DataError(
                    f"{rows} {name} images but {len(labels[part])} labels",
                    where=files[part, "images"].parent,
                    remedy="use images and labels of the same data set",
                )
        if sizes[0] != sizes[1]:
            raise DataError(
                f"training images have {sizes[0]} pixels, test images {sizes[1]}",
                where=files["t10k", "images"],
                remedy="use training and test images of the same data set",
            )
        names, positions = np.unique(np.concatenate(list(labels.values())), return_inverse=True)
        classes = [str(name) for name in names]
        splits = self._split(positions, len(labels["train"]), classes)
        split_of_row = np.full(len(positions), _UNUSED, np.uint8)
        for split, numbers in splits.rows.items():
            split_of_row[numbers] = SPLITS.index(split)
        return IdxListing(
            classes=[classes[position] for position in splits.class_order.tolist()],
            image_shape=(height, width, 1),
            rows={split: len(rows) for split, rows in splits.rows.items()},
            files=[files[part, "images"] for part in _PARTS],
            labels=splits.new_labels(len(classes))[positions].astype(np.uint8),
            split=split_of_row,
            num_train_classes=splits.num_train_classes,
            leave_one_out=splits.leave_one_out,
            notices=splits.notices,
        )

    def _split(self, labels: Ints, num_train: int, classes: list[str]) -> SplitAssignment:
        """Split the rows of both files; the first `num_train` are those of the training set."""
        if self.split == "stratified":
            present, positions = np.unique(labels[:num_train], return_inverse=True)
            sizes = {"val": self.val, "gallery": self.gallery}
            names = [classes[position] for position in present.tolist()]
            rows = stratify(positions, names, sizes, self.split_seed, self.root)
            notices = describe_sizes(rows, sizes, len(names), grouped=False)
            rows["query"] = np.arange(num_train, len(labels))
            splits = SplitAssignment.with_shared_classes(rows, labels, len(classes))
            return replace(splits, notices=notices)
        splits = split_by_class(
            labels,
            classes,
            val_classes=self.val_classes,
            test_classes=self.test_classes,
            seed=self.split_seed,
            where=self.root,
        )
        rows = {
            split: rows[rows >= num_train if split == "gallery" else rows < num_train]
            for split, rows in splits.rows.items()
        }
        return SplitAssignment(rows, splits.class_order, splits.num_train_classes)


@dataclass
class IdxListing(Listing):
    """The image files, and the label and split of each of their rows.

    Attributes:
        files: The files of images. Their rows are numbered consecutively.
        labels: [N] label of each row.
        split: [N] position in `SPLITS` of each row, or 255 for an unused row.
    """

    classes: list[str]
    image_shape: tuple[int, int, int]
    rows: Mapping[str, int]
    files: list[Path]
    labels: Bytes
    split: Bytes
    num_train_classes: int
    leave_one_out: bool
    notices: Sequence[str]

    def read(self, encode: Encode, workers: int) -> Iterator[RowBlock]:
        block, start = rows_per_block(self.image_shape), 0
        for images in itertools.chain(*(read_blocks(file, 3, block) for file in self.files)):
            part = slice(start, start + len(images))
            for name in self.rows:
                chosen = self.split[part] == SPLITS.index(name)
                labels = self.labels[part][chosen].astype(np.int64)
                yield RowBlock(name, encode(images[chosen, ..., np.newaxis]), labels)
            start = part.stop


def _find_files(root: str) -> dict[tuple[str, str], Path]:
    """Find the four files, by part ("train", "t10k") and kind ("images", "labels")."""
    if not Path(root).is_dir():
        _explain_mnist(Path(root))
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


def _explain_mnist(root: Path) -> None:
    """Raise an error if the folder is that of MNIST in the repository, which is not installed."""
    from arcloop.config.files import bundled  # imports Hydra, which reading data does not need

    if root == bundled("mnist"):
        raise DataError(
            "the files of MNIST are in the repository of arcloop, but not in the installed package",
            where="data=mnist, the default of data",
            remedy="use images of your own (data=image_folder data.root=FOLDER) or data=synthetic;"
            " for MNIST, run the command in a clone of the repository, or pass data.root=FOLDER"
            " with its four files",
        )


def read_blocks(path: Path, dimensions: int, rows: int) -> Iterator[Bytes]:
    """Read an IDX file of uint8 from start to end.

    Args:
        path: The file; it is decompressed if its name ends in ".gz".
        dimensions: Number of dimensions that it must have; the first counts rows.
        rows: Rows in a block.

    Yields:
        uint8 [`rows`, ...]; the last block may have fewer rows.

    Raises:
        DataError: The file is not in this format, or is shorter or longer than its header states.
    """
    with _open(path, dimensions) as (file, (total, *shape)):
        row_bytes = math.prod(shape)
        for start in range(0, total, rows):
            count = min(rows, total - start)
            content = file.read(count * row_bytes)
            if len(content) < count * row_bytes:
                raise DataError(
                    f"short file: it ends in row {start + len(content) // row_bytes}"
                    f" of the {total} rows in its header",
                    where=path,
                    remedy=_RESTORE,
                )
            yield np.frombuffer(content, np.uint8).reshape(count, *shape)
        if file.read(1):
            raise DataError(
                f"the file continues after the {total} rows in its header",
                where=path,
                remedy=_RESTORE,
            )


@contextlib.contextmanager
def _open(path: Path, dimensions: int) -> Iterator[tuple[io.BufferedReader, tuple[int, ...]]]:
    """Open an IDX file at its first value; yield the file and its shape."""
    opener: Callable[[Path], Any] = gzip.open if path.suffix == ".gz" else io.FileIO
    # BufferedReader fills a whole buffer; GzipFile may fill only a part of it.
    with _read_errors(path), io.BufferedReader(opener(path)) as file:
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
        yield file, shape


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Convert errors of the operating system and of gzip to a `DataError` with the file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as cause:
        raise DataError(f"damaged gzip file: {cause}", where=path, remedy=_RESTORE) from None
    except OSError as cause:
        raise DataError(
            f"cannot be read: {cause.strerror or cause}", where=path, remedy=_RESTORE
        ) from None
