"""What sources of picture files share: how they are decoded, and how they are split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from arcloop.config.value_types import Fraction, NonNegativeInt, PositiveInt
from arcloop.data.sources.base import SPLITS, Source
from arcloop.data.sources.image_size import height_and_width
from arcloop.data.sources.picture_listing import PictureListing, Pictures
from arcloop.data.splits.disjoint import Division, disjoint, disjoint_as_given, stratified
from arcloop.data.splits.growth import Growth, Shares, WithTheirClass
from arcloop.errors import DataError

Ints = npt.NDArray[np.int64]


@dataclass(kw_only=True)
class PictureSource(Source):
    """Pictures of any size and mode.

    Those that are not split already are split here, by a draw.

    Attributes:
        image_size: Height and width, or one number for both, to which pictures are resized.
        channels: 1 (grey) or 3 (RGB), to which they are converted.
        split: "stratified": every class is shared out over all splits. "disjoint": train, val and
            gallery have no class in common, and gallery is also the query split, by leave-one-out.
        val: If stratified, rows (int) or share of all rows (float) that select the checkpoint.
        gallery: If stratified, rows or share that fill the index.
        query: If stratified, rows or share that judge.
        val_classes: If disjoint, classes (int) or share of all classes (float) of val.
        test_classes: If disjoint, classes or share that fill the index and judge.
        split_seed: Of the draw.
        on_bad_image: "fail": a picture that cannot be read ends the work; "skip": it is left out,
            and counted.
    """

    appendable = True

    image_size: PositiveInt | list[PositiveInt]
    channels: Literal[1, 3]
    split: Literal["stratified", "disjoint"]
    val: PositiveInt | Fraction
    gallery: PositiveInt | Fraction
    query: PositiveInt | Fraction
    val_classes: PositiveInt | Fraction
    test_classes: PositiveInt | Fraction
    split_seed: NonNegativeInt
    on_bad_image: Literal["fail", "skip"]

    def __post_init__(self) -> None:
        super().__post_init__()
        height_and_width(self.image_size)

    def splits_needed(self) -> tuple[str, ...]:
        """Return the splits that pictures which are split already must have."""
        return SPLITS if self.split == "stratified" else ("train", "val", "gallery")

    def _listing(
        self,
        pictures: Pictures,
        labels: Ints,
        classes: Sequence[str],
        given: Mapping[str, Ints] | None,
        *,
        where: object,
        layout: str,
    ) -> PictureListing:
        """Split pictures.

        Args:
            pictures: The files.
            labels: [N] class of each, a position in `classes`.
            classes: Class names.
            given: Split -> its pictures, where they are split already.
            where: Where they come from, for messages.
            layout: What tells the split of a picture, for messages.

        Raises:
            DataError: They cannot be split as the settings ask.
        """
        division = self._divide(labels, classes, given, where, layout)
        height, width = height_and_width(self.image_size)
        return PictureListing(
            classes=[classes[label] for label in division.order.tolist()],
            image_shape=(height, width, self.channels),
            pictures=pictures,
            labels=division.new_label[labels],
            order=division.rows,
            skip_bad=self.on_bad_image == "skip",
            growth=None if given is not None else self._growth(),
            num_train_classes=division.num_train_classes,
            leave_one_out=division.leave_one_out,
        )

    def _divide(
        self,
        labels: Ints,
        classes: Sequence[str],
        given: Mapping[str, Ints] | None,
        where: object,
        layout: str,
    ) -> Division:
        if given is not None:
            if empty := [split for split in self.splits_needed() if not len(given[split])]:
                raise DataError(
                    f"no images in {', '.join(empty)}",
                    where=where,
                    remedy=f"give images by {layout}",
                )
            if self.split == "disjoint":
                there = {split: rows for split, rows in given.items() if len(rows)}
                return disjoint_as_given(labels, classes, there, where)
            return Division(given, np.arange(len(classes)), len(classes))
        if self.split == "disjoint":
            return disjoint(
                labels,
                classes,
                val_classes=self.val_classes,
                test_classes=self.test_classes,
                seed=self.split_seed,
                where=where,
            )
        return stratified(labels, classes, self._sizes(), self.split_seed, where)

    def _growth(self) -> Growth:
        if self.split == "disjoint":
            return WithTheirClass()
        return Shares(self._sizes(), self.split_seed)

    def _sizes(self) -> dict[str, int | float]:
        return {"val": self.val, "gallery": self.gallery, "query": self.query}
