"""Interface of data sources. `prepare` writes the store of any source."""

from __future__ import annotations

import dataclasses
import unicodedata
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from arcloop.artifacts.atomic import sha256_json
from arcloop.config.value_types import (
    FolderName,
    Fraction,
    ImageSize,
    JpegQuality,
    PositiveInt,
    check_fields,
)
from arcloop.data.store.shards import FileTable, Images, Labels
from arcloop.data.store.source_files import SourceChanges, StoreContents
from arcloop.errors import ConfigError, DataError
from arcloop.runtime.images import encode_jpeg

Encode = Callable[[Images], Images | list[bytes]]
"""Converts a batch of images to the form in which a store contains them."""

_KEY_DIGITS = 16
_LOCATION_FIELDS = ("root", "file")


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of a split.

    Attributes:
        split: The split.
        images: N images, encoded as the store requires.
        labels: int64 [N].
        files: [N] the file of each image, if the source has one file per image.
        unreadable: Path and reason of each image that was left out because it cannot be read.
        groups: int64 [N] group of each image, if the source has groups.
        transparent: Number of images with transparent parts.
        metadata: [N] JSON object of each image in UTF-8, if the source has metadata.
    """

    split: str
    images: Images | Sequence[bytes]
    labels: Labels
    files: FileTable | None = None
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    groups: Labels | None = None
    transparent: int = 0
    metadata: Sequence[bytes] | None = None


class Listing(ABC):
    """Contents of a source that are known without reading images.

    Attributes:
        classes: Class names; a label is an index into this list.
        image_shape: (H, W, C) of every image.
        rows: Split -> number of its rows, for every split that is stored.
        num_train_classes: Number of classes of train. They have the first labels; classes with
            images in query only have the last labels.
        leave_one_out: Whether gallery is also the query split; if so, its rows are stored once.
        root: Folder to which the paths of files are relative, if there is one file per image.
        passed_over: Descriptions of images that are left out; see also `Source.passed_over`.
        notices: Descriptions of deviations from the settings, for example of split sizes.
        group_names: Names of the groups; a group is an index into this list. None without groups.
        dropped: Descriptions of files that are left out because another has the same pixels.
    """

    classes: list[str]
    image_shape: tuple[int, int, int]
    rows: Mapping[str, int]
    num_train_classes: int
    leave_one_out: bool
    root: str | None = None
    passed_over: Sequence[str] = ()
    notices: Sequence[str] = ()
    group_names: Sequence[str] | None = None
    dropped: Sequence[str] = ()

    @abstractmethod
    def read(self, encode: Encode, workers: int) -> Iterator[RowBlock]:
        """Yield the rows of all splits in blocks, the rows of each split in order.

        Only a few blocks are in memory at a time.

        Args:
            encode: Converts images to the form in which the store contains them.
            workers: Number of processes that decode images.

        Raises:
            DataError: An image could not be read, and the settings do not allow skipping it.
        """

    def compare_with(self, contents: StoreContents, *, full: bool = False) -> SourceChanges:
        """Compare the source with a store that was made from it (appendable sources only).

        Args:
            contents: Contents of the store.
            full: Compare the contents of all files. Otherwise, compare only those of files whose
                size and modification time are the same, but whose inode number or ctime differs.
        """
        raise NotImplementedError

    def select_new(self, is_new: npt.NDArray[np.bool_], contents: StoreContents) -> Listing:
        """Return a listing of only the new images (appendable sources only).

        Args:
            is_new: [N] whether an image of this listing is new.
            contents: Contents of the store. Its classes keep their labels; new classes follow.

        Raises:
            DataError: The images cannot be added to the splits of the store.
        """
        raise NotImplementedError


@dataclass(kw_only=True)
class Source(ABC):
    """Base class of data sources. The fields of a subclass are the schema of its config.

    Attributes:
        name: Part of the name of the store's folder.
        shard_rows: Rows in one shard of the store.
        encoding: "raw" stores pixels, which are fastest to read. "jpeg" stores JPEG images, which
            are smaller and lossy, and are decoded at every read.
        jpeg_quality: Quality for "jpeg", 1 to 100.
        split: "stratified": every class is divided over all splits. "disjoint": train, val and
            gallery have no common class, and gallery is also the query split, with leave-one-out.
            "evaluation" (image files only): train and val are empty, and without given splits, all
            images are gallery and also query, with leave-one-out.
        val_classes: If disjoint, classes (int) or fraction of all classes (float) for val.
        test_classes: If disjoint, classes or fraction for gallery.
    """

    appendable = False  # whether new images can be distinguished from those of a store

    name: FolderName
    shard_rows: PositiveInt
    encoding: Literal["raw", "jpeg"]
    jpeg_quality: JpegQuality
    split: Literal["stratified", "disjoint", "evaluation"]
    val_classes: PositiveInt | Fraction
    test_classes: PositiveInt | Fraction

    def __post_init__(self) -> None:
        check_fields(self, "data")
        if self.split == "evaluation" and not self.appendable:
            raise ConfigError(
                "data.split=evaluation is only possible for data of image files",
                remedy="pass data.split=stratified or data.split=disjoint",
            )

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash, in hex, of the content of the source. It does not depend on its location.

        Raises:
            DataError: The source does not exist.
        """

    def files(self) -> dict[str, str]:
        """Return file -> sha256 if the source consists of a few files, else an empty dict."""
        return {}

    @abstractmethod
    def open(self) -> Listing:
        """List the contents without reading images.

        Raises:
            DataError: The contents cannot be split according to the settings, or a part of them is
                missing or damaged.
        """

    def open_for_store(self, workers: int) -> Listing:
        """List the contents of a new store; this may read all images.

        Args:
            workers: Number of processes that decode images.

        Raises:
            DataError: As `open`.
        """
        return self.open()

    def encode(self, images: Images) -> Images | list[bytes]:
        """Convert images [N, H, W, C] to the form in which the store contains them."""
        if self.encoding == "raw":
            return images
        return [encode_jpeg(image, self.jpeg_quality) for image in images]

    def passed_over(self) -> list[str]:
        """Describe the files that the source contains but does not read, by extension and reason.

        Returns:
            One line for each extension and reason, with the number of files and an example.
        """
        return []

    def settings(self) -> dict[str, Any]:
        """Return the fields that affect the contents of the store.

        These are all fields except the location and, for raw images, the settings of the encoding.
        """
        unused = set(_LOCATION_FIELDS)
        if self.encoding == "raw":
            unused |= {"encoding", "jpeg_quality"}
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in unused}


def hash_settings(source: Source, *more: str) -> str:
    """Return a hash of the settings of a store, which does not depend on the source's location."""
    return sha256_json([type(source).__name__, source.settings(), *more])[:_KEY_DIGITS]


def similar_names(classes: Iterable[str]) -> list[str]:
    """Describe the class names that differ only in case, spaces or their Unicode spelling.

    >>> similar_names(["dog", "Dog", "cat"])
    ["classes 'Dog', 'dog' differ only in case, spaces or Unicode spelling"]
    """
    groups = defaultdict(list)
    for name in sorted(classes):
        groups[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    return [
        f"classes {', '.join(map(repr, names))} differ only in case, spaces or Unicode spelling"
        + "".join(f"; {name!r} is {name!a}" for name in names if not name.isascii())
        for names in groups.values()
        if len(names) > 1
    ]


def existing_root(root: str) -> Path:
    """Return the folder of a source.

    Raises:
        DataError: The folder does not exist.
    """
    path = Path(root)
    if not path.is_dir():
        raise DataError(
            "there is no such folder", where=path.absolute(), remedy="correct data.root"
        )
    return path


def height_and_width(image_size: ImageSize) -> tuple[int, int]:
    """Return (height, width), in pixels, of the setting `image_size`.

    >>> height_and_width(28), height_and_width([32, 64])
    ((28, 28), (32, 64))
    """
    height, width = [image_size] * 2 if isinstance(image_size, int) else image_size
    return height, width
