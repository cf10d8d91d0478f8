"""What a source of images and labels must offer; the store is written from any of them alike."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from arcloop.config.value_types import JpegQuality, PositiveInt, check_fields
from arcloop.data.sources.workers import Workers
from arcloop.data.store.shards import SplitWriter
from arcloop.errors import DataError

if TYPE_CHECKING:
    from arcloop.data.store.source_files import Difference, Held

_PLACE = ("root", "file")
SPLITS = ("train", "val", "gallery", "query")
"""`train` learns, `val` selects the checkpoint, `gallery` fills the index, `query` judges."""


class Listing(ABC):
    """A source that was opened: all that is known before a pixel is read.

    Attributes:
        classes: Class names; a label is a position in it.
        image_shape: (H, W, C) of every image.
        rows: Split -> number of its rows, of every split that is stored.
        num_train_classes: Classes to train on: the first of them, where splits are by class.
        leave_one_out: Whether gallery is also the query split, whose rows are then stored once.
    """

    classes: list[str]
    image_shape: tuple[int, int, int]
    rows: Mapping[str, int]
    num_train_classes: int
    leave_one_out: bool

    @abstractmethod
    def fill(
        self, writers: Mapping[str, SplitWriter], advance: Callable[[int], None], workers: Workers
    ) -> Mapping[str, Mapping[int, str]]:
        """Write every row of every split, in memory that does not grow with their number.

        Args:
            writers: Split -> where its rows go; already of the right size.
            advance: Told how many more rows are done.
            workers: Processes that may be started and used.

        Returns:
            Split -> rows to be left out again because they could not be read, with their names.

        Raises:
            DataError: Something could not be read, and the settings do not say to skip it.
        """

    def origins(self, split: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any] | None:
        """Return the files that these rows of a split were read from, see `origins.py`.

        Returns:
            None where a row is not a file of its own.
        """
        return None

    def difference(self, held: Held) -> Difference:
        """Compare what is listed with what a store holds; of appendable sources."""
        raise NotImplementedError

    def beyond(self, new: npt.NDArray[np.bool_], held: Held) -> Listing:
        """Return a listing of the new images alone, to be appended; of appendable sources.

        Args:
            new: [N] whether a listed image is new.
            held: What the store holds. Its classes keep their labels, new ones come after.

        Raises:
            DataError: They cannot be added to its splits.
        """
        raise NotImplementedError


@dataclass(kw_only=True)
class Source(ABC):
    """Where images and labels come from. The fields of a subclass are the schema of its config.

    Attributes:
        name: Names the store's folder.
        shard_rows: Rows in one shard of the store.
        encoding: How the store keeps images: "raw", as pixels, read fastest; or "jpeg", a fraction
            of the space, lossy, and decoded whenever they are read.
        jpeg_quality: Of "jpeg": 1 to 100.
    """

    appendable = False  # whether new images can be told from those that a store holds

    name: str
    shard_rows: PositiveInt
    encoding: Literal["raw", "jpeg"]
    jpeg_quality: JpegQuality

    def __post_init__(self) -> None:
        check_fields(self, "data")

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash, in hex, that changes when what is read changes; not with its place.

        Raises:
            DataError: The source is not there.
        """

    def files(self) -> dict[str, str]:
        """Return file -> sha256, where the source is a few files; else nothing."""
        return {}

    def likely_tasks(self) -> int:
        """Return how many tasks for processes to expect at least, as is told in milliseconds.

        Raises:
            DataError: The source is not there.
        """
        return 0

    @abstractmethod
    def open(self) -> Listing:
        """Look at what there is, without reading images.

        Raises:
            DataError: It cannot be split as the settings ask, or something is missing or damaged.
        """

    def settings(self) -> dict[str, Any]:
        """Return what else decides on the store's contents: all fields but the place."""
        unused = set(_PLACE)
        if self.encoding == "raw":
            unused |= {"encoding", "jpeg_quality"}
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in unused}


def existing_root(root: str) -> Path:
    """Return the folder of a source.

    Raises:
        DataError: There is no such folder.
    """
    path = Path(root)
    if not path.is_dir():
        raise DataError(
            "there is no such folder", where=path.absolute(), remedy="correct data.root"
        )
    return path
