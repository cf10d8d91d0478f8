"""Source of generated images, in any number, whose classes a model can learn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from arcloop.artifacts.atomic import sha256_json
from arcloop.config.value_types import Fraction, ImageSize, NonNegativeInt, PositiveInt
from arcloop.data.sources import Encode, Listing, RowBlock, Source, height_and_width
from arcloop.data.splits import SPLITS
from arcloop.data.splits.disjoint import count_classes
from arcloop.data.store.shards import Images, Labels, rows_per_block
from arcloop.errors import ConfigError

_GENERATOR_VERSION = 1  # increase it when a change of the code changes the images
_CELLS = 7


@dataclass(kw_only=True)
class SyntheticSource(Source):
    """Source whose classes are random patterns of 7 x 7 cells; images are patterns with noise.

    Attributes:
        num_classes: Number of classes; row i of a split is of class i modulo this number.
        image_size: Height and width, or one number for both, in pixels.
        channels: 1 or 3.
        train: Number of rows of train.
        val: Number of rows of val.
        gallery: Number of rows of gallery.
        query: Number of rows of query.
        noise: Half-width of the uniform noise, as a fraction of the range of a pixel.
        seed: Seed of the patterns and of the noise.
    """

    num_classes: PositiveInt
    image_size: ImageSize
    channels: Literal[1, 3]
    train: PositiveInt
    val: PositiveInt
    gallery: PositiveInt
    query: PositiveInt
    noise: Fraction
    seed: NonNegativeInt

    def fingerprint(self) -> str:
        return sha256_json({"synthetic": _GENERATOR_VERSION})

    def open(self) -> Listing:
        height, width = height_and_width(self.image_size)
        digits = len(str(self.num_classes - 1))
        num_classes = {}
        if self.split == "disjoint":
            num_classes = count_classes(
                self.num_classes,
                val_classes=self.val_classes,
                test_classes=self.test_classes,
                where="data.num_classes",
            )
        return SyntheticListing(
            classes=[f"class-{label:0{digits}d}" for label in range(self.num_classes)],
            image_shape=(height, width, self.channels),
            rows=self._rows(num_classes),
            noise=self.noise,
            seed=self.seed,
            num_classes=num_classes,
        )

    def _rows(self, num_classes: Mapping[str, int]) -> dict[str, int]:
        """Return the rows of each split, after checking that they suffice for its classes.

        Raises:
            ConfigError: A split has too few rows.
        """
        rows: dict[str, int] = {split: getattr(self, split) for split in num_classes or SPLITS}
        faults = []
        for split, minimum in (("train", 2), ("val", 2), ("gallery", 2 if num_classes else 1)):
            classes = num_classes.get(split, self.num_classes)
            if rows[split] < minimum * classes:
                faults.append(
                    f"data.{split}={rows[split]} must be at least {minimum * classes}:"
                    f" {minimum} image(s) of each of {classes} classes"
                )
        if faults:
            remedy = "raise these values, or lower data.num_classes"
            raise ConfigError("\n".join(faults), remedy=remedy)
        return rows


@dataclass
class SyntheticListing(Listing):
    """Generated rows, which depend only on the seed, the split and the row number.

    Attributes:
        noise: As in `SyntheticSource`.
        seed: As in `SyntheticSource`.
        num_classes: Split -> number of its classes, in the order of the labels; empty if every
            split has all classes.
    """

    classes: list[str]
    image_shape: tuple[int, int, int]
    rows: Mapping[str, int]
    noise: float
    seed: int
    num_classes: Mapping[str, int]
    _patterns: Images = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.num_train_classes = self.num_classes.get("train", len(self.classes))
        self.leave_one_out = bool(self.num_classes)
        shape = (len(self.classes), _CELLS, _CELLS, self.image_shape[2])
        self._patterns = np.random.default_rng(self.seed).integers(0, 256, shape, dtype=np.uint8)

    def read(self, encode: Encode, workers: int) -> Iterator[RowBlock]:
        block = rows_per_block(self.image_shape)
        for split, rows in self.rows.items():
            for start in range(0, rows, block):
                images, labels = self.generate(split, start, min(start + block, rows))
                yield RowBlock(split, encode(images), labels)

    def generate(self, split: str, start: int, stop: int) -> tuple[Images, Labels]:
        """Return images [N, H, W, C] and labels [N] of rows `start` to `stop` - 1 of a split."""
        height, width, channels = self.image_shape
        num_classes = self.num_classes.get(split, len(self.classes))
        before = SPLITS[: SPLITS.index(split)]
        first_class = sum(self.num_classes.get(earlier, 0) for earlier in before)
        labels = np.arange(start, stop, dtype=np.int64) % num_classes + first_class
        rows = np.arange(height) * _CELLS // height
        columns = np.arange(width) * _CELLS // width
        pattern_NHWC = self._patterns[labels[:, None, None], rows[:, None], columns]

        row_bytes = height * width * channels
        steps = math.ceil(row_bytes / 32)  # Philox generates 32 bytes per step of its counter
        key = np.array([self.seed % 2**64, SPLITS.index(split)], dtype=np.uint64)
        random = np.random.Philox(key=key, counter=start * steps).random_raw(
            len(labels) * steps * 4
        )
        random_NHWC = random.view(np.uint8).reshape(len(labels), -1)[:, :row_bytes]
        noise = np.rint((np.arange(256) - 127.5) * 2 * self.noise).astype(np.int16)
        noisy = pattern_NHWC + noise[random_NHWC].reshape(pattern_NHWC.shape)
        return noisy.clip(0, 255).astype(np.uint8), labels
