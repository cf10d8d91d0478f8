"""Wrong answers: the worst of them, their counts by class, and their image for TensorBoard.

Shapes: Q queries, B queries of a batch, K neighbours, C classes, W wrong answers.
"""

from __future__ import annotations

import heapq
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from arcloop.display.plotting import (
    RIGHT,
    WRONG,
    drawable_names,
    encode_png,
    figure,
    short_name,
    styled,
)
from arcloop.display.terminal import format_similarity
from arcloop.evaluation.metrics.retrieval import Bools
from arcloop.retrieval.embed import Embeddings, Labels

ReadImage = Callable[[str, int], npt.NDArray[np.uint8]]
"""Split ("query" or "gallery") and row -> uint8 [H, W, C]."""

_MAX_TABLE_CLASSES, _MAX_PAIRS = 1000, 100
_ROWS, _NEIGHBOURS = 24, 5
_CELL, _GAP, _BORDER = 64, 6, 3  # pixels
_ROW_INCHES, _WIDTH_INCHES, _TEXT_INCHES = 0.72, 6.4, 2.1


@dataclass(frozen=True)
class Mistake:
    """A query answered with the wrong class.

    Attributes:
        query_row: Row in the query split.
        label: Class of the query.
        predicted: Class of the nearest gallery row that the index found.
        similarity: Cosine similarity to that row.
        neighbour_rows: Gallery rows that the index found, nearest first.
        neighbour_labels: Their classes.
        neighbour_similarities: Their cosines.
    """

    query_row: int
    label: int
    predicted: int
    similarity: float
    neighbour_rows: tuple[int, ...]
    neighbour_labels: tuple[int, ...]
    neighbour_similarities: tuple[float, ...]


def find_mistakes(
    first_row: int, labels_B: Labels, similarities_BK: Embeddings, rows_BK: Labels,
    neighbour_labels_BK: Labels, count: int,
) -> list[Mistake]:  # fmt: skip
    """Return the wrong answers to a batch of queries with the highest similarity.

    Queries for which the index found no neighbour are left out.

    Args:
        first_row: Row of the first query in the query split.
        labels_B: Class of each query.
        similarities_BK: Cosines of the neighbours, best first.
        rows_BK: Gallery rows of the neighbours; -1: none.
        neighbour_labels_BK: Their classes; -1: none.
        count: Maximum number of mistakes.
    """
    wrong = np.flatnonzero((neighbour_labels_BK[:, 0] != labels_B) & (rows_BK[:, 0] >= 0))
    worst = wrong[np.argsort(-similarities_BK[wrong, 0], kind="stable")][:count].tolist()
    return [
        Mistake(
            query_row=first_row + query,
            label=int(labels_B[query]),
            predicted=int(neighbour_labels_BK[query, 0]),
            similarity=float(similarities_BK[query, 0]),
            neighbour_rows=tuple(rows_BK[query][found_K].tolist()),
            neighbour_labels=tuple(neighbour_labels_BK[query][found_K].tolist()),
            neighbour_similarities=tuple(similarities_BK[query][found_K].tolist()),
        )
        for query, found_K in zip(worst, rows_BK[worst] >= 0, strict=True)
    ]


def worst_mistakes(mistakes: Iterable[Mistake], count: int) -> list[Mistake]:
    """Return the mistakes with the highest similarity, most similar first."""
    return heapq.nsmallest(count, mistakes, key=lambda m: (-m.similarity, m.query_row))


@dataclass(frozen=True)
class Confusion:
    """Counts of answers by true class.

    Attributes:
        total: int64 [C], queries of each class that can be answered correctly.
        right: int64 [C], queries of each class that were answered correctly.
        labels: Classes of the table, ascending: all evaluated classes, or the thousand classes with
            the most mistakes if there are more.
        counts: int64 [len(labels), len(labels)], rows true class, columns predicted class, without
            the queries for which the index found no neighbour.
        pairs: (true class, predicted class, count) of the most frequent mistakes of all classes.
        is_cut: Whether there are more evaluated classes than `labels`.
    """

    total: Labels
    right: Labels
    labels: Labels
    counts: Labels
    pairs: list[tuple[int, int, int]]
    is_cut: bool

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """Accuracy of each class in [0, 1]; NaN for a class without queries."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.right / self.total, dtype=np.float64)


def confusion(
    labels_Q: Labels,
    predicted_Q: Labels,
    num_classes: int,
    *,
    max_classes: int = _MAX_TABLE_CLASSES,
    evaluated_C: Bools | None = None,
    known_Q: Bools | None = None,
) -> Confusion:
    """Count answers by true class.

    Args:
        labels_Q: True class, in [0, num_classes).
        predicted_Q: Predicted class; -1: none.
        num_classes: C.
        max_classes: Maximum number of classes in the table; its size is quadratic in this number.
        evaluated_C: Classes that the table may contain; None: all. With class-disjoint splits, the
            classes of train are not evaluated.
        known_Q: Whether the gallery has another row of the query's class, so that it can be
            answered correctly; None: it has for all.

    >>> table = confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), num_classes=2)
    >>> table.counts.tolist(), table.accuracy.tolist(), table.pairs
    ([[1, 1], [0, 1]], [0.5, 1.0], [(0, 1, 1)])
    """
    right_Q = labels_Q == predicted_Q
    wrong_Q = ~right_Q & (predicted_Q >= 0)
    true_W, predicted_W = labels_Q[wrong_Q], predicted_Q[wrong_Q]
    mistakes_C = np.bincount(np.concatenate([true_W, predicted_W]), minlength=num_classes)
    order = np.argsort(-mistakes_C, kind="stable")
    if evaluated_C is not None:
        order = order[evaluated_C[order]]
    labels = np.sort(order[:max_classes])
    size = len(labels)
    position_C = np.full(num_classes, -1)
    position_C[labels] = np.arange(size)
    true_Q, answer_Q = position_C[labels_Q], position_C[predicted_Q]
    shown_Q = (true_Q >= 0) & (answer_Q >= 0) & (predicted_Q >= 0)
    cells = true_Q[shown_Q] * size + answer_Q[shown_Q]
    codes, counts = np.unique(true_W * num_classes + predicted_W, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:_MAX_PAIRS]
    pairs = (*np.divmod(codes[most], num_classes), counts[most])
    return Confusion(
        total=np.bincount(
            labels_Q if known_Q is None else labels_Q[known_Q], minlength=num_classes
        ),
        right=np.bincount(labels_Q[right_Q], minlength=num_classes),
        labels=labels,
        counts=np.bincount(cells, minlength=size**2).reshape(size, size),
        pairs=list(zip(*(column.tolist() for column in pairs), strict=True)),
        is_cut=len(order) > max_classes,
    )


def accuracy_metrics(table: Confusion, is_held_out_C: Bools) -> dict[str, float]:
    """Compute the top-1 accuracy of all queries, by class, and by the training of the class.

    Args:
        table: Counts of answers.
        is_held_out_C: bool [C], classes that were held out from training.

    Returns:
        "top1", "mean_class_accuracy" and "min_class_accuracy" in [0, 1], over the queries that can
        be answered correctly; empty if there are none. If there are such queries both of trained
        and of held-out classes, also "top1_trained_classes" and "top1_held_out_classes".

    >>> table = confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), num_classes=2)
    >>> metrics = accuracy_metrics(table, np.array([False, True]))
    >>> metrics["mean_class_accuracy"], metrics["top1_trained_classes"]
    (0.75, 0.5)
    """
    if not table.total.any():
        return {}
    accuracies = table.accuracy[table.total > 0]
    kinds = {
        "top1_trained_classes": ~is_held_out_C, "top1_held_out_classes": is_held_out_C
    }  # fmt: skip
    if not all(table.total[of_kind_C].any() for of_kind_C in kinds.values()):
        kinds = {}
    return {
        name: float(table.right[of_kind_C].sum() / table.total[of_kind_C].sum())
        for name, of_kind_C in {"top1": np.ones_like(is_held_out_C), **kinds}.items()
    } | {
        "mean_class_accuracy": float(accuracies.mean()),
        "min_class_accuracy": float(accuracies.min()),
    }


@styled
def mistake_sheet(
    mistakes: Sequence[Mistake], classes: Sequence[str], image: ReadImage
) -> npt.NDArray[np.uint8]:
    """Draw one row per mistake: the query and its nearest gallery images.

    A blue frame marks gallery images of the query's class, an orange frame those of other classes.

    Args:
        mistakes: At least one; the first 24 are drawn.
        classes: Class names; a label is a position in the list.
        image: Reads one image of the query or gallery split.

    Returns:
        uint8 [H, W, 3].
    """
    mistakes, names = mistakes[:_ROWS], drawable_names(classes)
    rows = [_row(mistake, image) for mistake in mistakes]
    drawn, (axis,) = figure(
        width=_WIDTH_INCHES,
        height=_ROW_INCHES * len(rows) + 0.1,
        margins=(_TEXT_INCHES, 0.05, 0.05, 0.05),
    )
    drawn.patch.set_alpha(1)
    axis.imshow(np.concatenate(rows), aspect="equal", interpolation="nearest")
    axis.axis("off")
    for number, mistake in enumerate(mistakes):
        axis.text(
            -0.02,
            1 - (number + 0.5) / len(mistakes),
            f"{short_name(names[mistake.label])}\n"
            f"predicted at {format_similarity(mistake.similarity)}:\n"
            f"{short_name(names[mistake.predicted])}",
            transform=axis.transAxes,
            ha="right",
            va="center",
        )
    with Image.open(io.BytesIO(encode_png(drawn))) as opened:
        return np.asarray(opened.convert("RGB"))


def _row(mistake: Mistake, image: ReadImage) -> npt.NDArray[np.uint8]:
    """Return the query and its neighbours next to each other on white, uint8 [H, W, 3]."""
    neighbours = list(zip(mistake.neighbour_rows, mistake.neighbour_labels, strict=True))
    cells = [_framed(image("query", mistake.query_row), "white")]
    cells += [
        _framed(image("gallery", row), RIGHT if label == mistake.label else WRONG)
        for row, label in neighbours[:_NEIGHBOURS]
    ]
    sheet = np.full((_CELL + _GAP, (_NEIGHBOURS + 1) * (_CELL + _GAP), 3), 255, np.uint8)
    for number, cell in enumerate(cells):
        left = number * (_CELL + _GAP)
        sheet[:_CELL, left : left + _CELL] = cell
    return sheet


def _framed(pixels_HWC: npt.NDArray[np.uint8], colour: str) -> npt.NDArray[np.uint8]:
    """Resize an image to one cell with a frame around it."""
    inside = _CELL - 2 * _BORDER
    picture = Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC)
    smooth = max(picture.size) > inside  # small images are enlarged without smoothing
    resampling = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    picture = picture.convert("RGB").resize((inside, inside), resampling)
    return np.asarray(ImageOps.expand(picture, _BORDER, colour))
