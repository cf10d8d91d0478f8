"""Seeded, stratified splits with exact row totals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from arcloop.errors import DataError

Ints = npt.NDArray[np.int64]

_LEAST = {"val": 2}  # val is judged by leave-one-out neighbours, so an image needs a mate in it
_NAMED = 10


def stratify(
    labels: npt.NDArray[np.integer],
    classes: Sequence[str],
    sizes: Mapping[str, int | float],
    seed: int,
    where: object,
) -> dict[str, Ints]:
    """Split rows so that every class is shared out alike; what is left over is `train`.

    Which rows of a class go where is drawn at random; how many is by largest remainder. Every class
    has a row in every split, and two in `val`, where its size and the split's allow.

    Args:
        labels: [N] positions in `classes`.
        classes: Class names, for messages.
        sizes: Split -> rows (int), or share of all rows (float).
        seed: Of the draw.
        where: Where the rows come from, for messages.

    Returns:
        Split -> its rows, ascending; `train` first.

    Raises:
        DataError: A class has too few images for the splits, or the splits are larger than the
            data; all such faults of a kind in one message.
    """
    counts = np.bincount(labels, minlength=len(classes)).astype(np.int64)
    totals = {
        name: round(size * len(labels)) if isinstance(size, float) else size
        for name, size in sizes.items()
    }
    _require_possible(counts, classes, totals, sizes, where)
    shares = apportion(counts, totals)

    names = ("train", *totals)
    table = np.stack([counts - sum(shares.values()), *shares.values()], axis=1)  # class, split
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    split = np.empty(len(labels), dtype=np.uint8)
    split[by_class] = np.repeat(np.tile(np.arange(len(names)), len(classes)), table.ravel())
    return {name: np.flatnonzero(split == number) for number, name in enumerate(names)}


def apportion(counts: Ints, totals: Mapping[str, int]) -> dict[str, Ints]:
    """Share out the rows of each class over splits by largest remainder.

    Args:
        counts: [C] rows of each class.
        totals: Split -> rows in all; they leave at least a row of each class.

    Returns:
        Split -> [C] rows of each class, which add up to the split's total.

    Example:
        >>> apportion(np.array([10, 20, 5]), {"gallery": 7})
        {'gallery': array([2, 4, 1])}
    """
    least = _least(counts, totals)
    left = counts - 1 - sum(least.values())  # what is free to give: a row of each is kept for train
    shares = {}
    for name, total in totals.items():
        low, high = least[name], least[name] + left
        quota = total * counts / counts.sum()
        rows = np.clip(np.floor(quota).astype(np.int64), low, high)
        while missing := total - int(rows.sum()):
            step = 1 if missing > 0 else -1
            possible = rows < high if step > 0 else rows > low
            order = np.argsort(step * (rows - quota), kind="stable")
            rows[order[possible[order]][: abs(missing)]] += step
        left = high - rows
        shares[name] = rows
    return shares


def _least(counts: Ints, totals: Mapping[str, int]) -> dict[str, Ints]:
    """Split -> [C] rows that each class has in it at least."""
    ones = {name: np.full_like(counts, min(1, t // len(counts))) for name, t in totals.items()}
    spare = counts - 1 - sum(ones.values())
    for name in totals.keys() & _LEAST.keys():
        wanted = min(_LEAST[name], totals[name] // len(counts)) - ones[name]
        extra = np.clip(wanted, 0, spare)
        ones[name] += extra
        spare -= extra
    return ones


def _require_possible(
    counts: Ints,
    classes: Sequence[str],
    totals: Mapping[str, int],
    sizes: Mapping[str, int | float],
    where: object,
) -> None:
    for name, total in totals.items():
        if total == 0:
            raise DataError(
                f"{name}={sizes[name]} of {counts.sum()} images is none",
                where=where,
                remedy=f"raise data.{name}",
            )
    few = np.flatnonzero(counts < 1 + len(totals))
    if len(few):
        named = ", ".join(f"{classes[c]!r} ({counts[c]})" for c in few[:_NAMED])
        more = f" and {len(few) - _NAMED} more" if len(few) > _NAMED else ""
        raise DataError(
            f"too few images to split over train, {', '.join(totals)}: class {named}{more}",
            where=where,
            remedy=f"give each class at least {1 + len(totals)} images, or remove it",
        )
    asked, rows = sum(totals.values()), int(counts.sum())
    if rows - asked < len(classes):
        parts = ", ".join(f"{name}={total}" for name, total in totals.items())
        raise DataError(
            f"the splits are larger than the data: {parts} of {rows} images"
            f" leave too few to train {len(classes)} classes",
            where=where,
            remedy="lower " + " or ".join(f"data.{name}" for name in totals),
        )
