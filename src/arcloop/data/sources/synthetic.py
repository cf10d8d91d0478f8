"""Made-up images that can be learned, any number of them, in the memory of one block."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from arcloop.artifacts.atomic import sha256_json
from arcloop.config.value_types import Fraction, NonNegativeInt, PositiveInt
from arcloop.data.sources.base import SPLITS, Listing, Source
from arcloop.data.sources.image_size import height_and_width
from arcloop.data.sources.workers import Workers
from arcloop.data.splits.disjoint import class_totals
from arcloop.data.store.shards import Images, Labels, SplitWriter, rows_per_block

_GENERATOR = 1  # raise it when the same settings give other images
_CELLS = 7


@dataclass(kw_only=True)
class SyntheticSource(Source):
    """Each class is a seeded pattern of 7 x 7 cells; each image is its pattern with noise.

    Attributes:
        num_classes: Classes; row i of a split is of class i modulo this.
        image_size: Height and width, or one number for both, in pixels.
        channels: 1 or 3.
        train: Rows of this split, as are `val`, `gallery` and `query`.
        split: "stratified": every split has all classes. "disjoint": train, val and gallery have
            no class in common, and gallery is also the query split, by leave-one-out.
        val_classes: If disjoint, classes (int) or share of all classes (float) of val.
        test_classes: If disjoint, classes or share of gallery.
        noise: Half-width of the uniform noise, as a share of the range of a pixel.
        seed: Of patterns and noise.
    """

    num_classes: PositiveInt
    image_size: PositiveInt | list[PositiveInt]
    channels: Literal[1, 3]
    train: PositiveInt
    val: PositiveInt
    gallery: PositiveInt
    query: PositiveInt
    split: Literal["stratified", "disjoint"]
    val_classes: PositiveInt | Fraction
    test_classes: PositiveInt | Fraction
    noise: Fraction
    seed: NonNegativeInt

    def __post_init__(self) -> None:
        super().__post_init__()
        height_and_width(self.image_size)

    def fingerprint(self) -> str:
        return sha256_json({"synthetic": _GENERATOR})

    def open(self) -> Listing:
        height, width = height_and_width(self.image_size)
        digits = len(str(self.num_classes - 1))
        totals = {} if self.split == "stratified" else self._class_totals()
        return SyntheticListing(
            classes=[f"class-{label:0{digits}d}" for label in range(self.num_classes)],
            image_shape=(height, width, self.channels),
            rows={split: getattr(self, split) for split in totals or SPLITS},
            noise=self.noise,
            seed=self.seed,
            class_totals=totals,
        )

    def _class_totals(self) -> dict[str, int]:
        return class_totals(
            self.num_classes,
            val_classes=self.val_classes,
            test_classes=self.test_classes,
            where="data.num_classes",
        )


@dataclass
class SyntheticListing(Listing):
    """Rows whose content is a function of seed, split and row number alone."""

    classes: list[str]
    image_shape: tuple[int, int, int]
    rows: Mapping[str, int]
    noise: float
    seed: int
    class_totals: Mapping[str, int]  # classes of each split, in this order; empty: all of all
    _patterns: Images = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.num_train_classes = self.class_totals.get("train", len(self.classes))
        self.leave_one_out = bool(self.class_totals)
        shape = (len(self.classes), _CELLS, _CELLS, self.image_shape[2])
        self._patterns = np.random.default_rng(self.seed).integers(0, 256, shape, dtype=np.uint8)

    def fill(
        self,
        writers: Mapping[str, SplitWriter],
        advance: Callable[[int], None],
        workers: Workers,
    ) -> Mapping[str, Mapping[int, str]]:
        block = rows_per_block(self.image_shape)
        for split, writer in writers.items():
            for start in range(0, writer.rows, block):
                stop = min(start + block, writer.rows)
                writer.write(start, *self.generate(split, start, stop))
                advance(stop - start)
        return {}

    def generate(self, split: str, start: int, stop: int) -> tuple[Images, Labels]:
        """Return images [N, H, W, C] and labels [N] of rows `start` to `stop` of a split."""
        height, width, channels = self.image_shape
        labels = self._first_class(split) + np.arange(start, stop, dtype=np.int64) % (
            self.class_totals.get(split, len(self.classes))
        )
        rows = np.arange(height) * _CELLS // height
        columns = np.arange(width) * _CELLS // width
        pattern_NHWC = self._patterns[labels[:, None, None], rows[:, None], columns]

        row_bytes = height * width * channels
        steps = math.ceil(row_bytes / 32)  # Philox gives 32 bytes a step of its counter
        key = np.array([self.seed % 2**64, SPLITS.index(split)], dtype=np.uint64)
        random = np.random.Philox(key=key, counter=start * steps).random_raw(
            len(labels) * steps * 4
        )
        random_NHWC = random.view(np.uint8).reshape(len(labels), -1)[:, :row_bytes]
        noise = np.rint((np.arange(256) - 127.5) * 2 * self.noise).astype(np.int16)
        noisy = pattern_NHWC + noise[random_NHWC].reshape(pattern_NHWC.shape)
        return noisy.clip(0, 255).astype(np.uint8), labels

    def _first_class(self, split: str) -> int:
        before = SPLITS[: SPLITS.index(split)]
        return sum(self.class_totals.get(earlier, 0) for earlier in before)
