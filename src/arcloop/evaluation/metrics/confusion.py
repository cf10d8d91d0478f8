"""Which class is taken for which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]

_MOST_CLASSES, _MOST_PAIRS = 1000, 100


@dataclass(frozen=True)
class Confusion:
    """Counts of answers by true class.

    Attributes:
        total: int64 [C], queries of each class.
        right: int64 [C], those answered with their class.
        labels: Classes of the table, ascending: all that are judged, or of more than a thousand
            those that take part in most mistakes.
        counts: int64 [len(labels), len(labels)], rows true class, columns answered class. Queries
            that the index gave no neighbour for are in none.
        pairs: (true class, answered class, count) of the most frequent mistakes over all classes.
    """

    total: Labels
    right: Labels
    labels: Labels
    counts: Labels
    pairs: list[tuple[int, int, int]]

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """Share of right answers by class, in [0, 1]; NaN where there are no queries."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.right / self.total, dtype=np.float64)


def confusion(
    labels_Q: Labels,
    predicted_Q: Labels,
    num_classes: int,
    most_classes: int = _MOST_CLASSES,
    judged_C: npt.NDArray[np.bool_] | None = None,
) -> Confusion:
    """Count answers by true class.

    Args:
        labels_Q: True class, in [0, num_classes).
        predicted_Q: Answered class; -1: none.
        num_classes: C.
        most_classes: Classes the table holds at most: it is square, and a face model has 100,000.
        judged_C: Which classes have a part in it; None: all. Where splits are by class, those of
            train have none.

    >>> table = confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), num_classes=2)
    >>> table.counts.tolist(), table.accuracy.tolist(), table.pairs
    ([[1, 1], [0, 1]], [0.5, 1.0], [(0, 1, 1)])
    """
    right_Q = labels_Q == predicted_Q
    wrong_Q = ~right_Q & (predicted_Q >= 0)
    true_W, answered_W = labels_Q[wrong_Q], predicted_Q[wrong_Q]
    mistakes_C = np.bincount(np.concatenate([true_W, answered_W]), minlength=num_classes)
    order = np.argsort(-mistakes_C, kind="stable")
    if judged_C is not None:
        order = order[judged_C[order]]
    labels = np.sort(order[:most_classes])

    place_C = np.full(num_classes, -1)
    place_C[labels] = np.arange(len(labels))
    true_Q, answered_Q = place_C[labels_Q], place_C[predicted_Q]
    shown_Q = (true_Q >= 0) & (answered_Q >= 0) & (predicted_Q >= 0)
    return Confusion(
        total=np.bincount(labels_Q, minlength=num_classes),
        right=np.bincount(labels_Q[right_Q], minlength=num_classes),
        labels=labels,
        counts=_table(true_Q[shown_Q], answered_Q[shown_Q], len(labels)),
        pairs=_pairs(true_W, answered_W, num_classes),
    )


def _table(true: Labels, answered: Labels, size: int) -> Labels:
    if size == 1:  # torchmetrics asks for two classes
        return np.array([[len(true)]])
    # Here, for its import takes a second, which who only ranks embeddings need not wait for.
    import torch
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    counts = multiclass_confusion_matrix(
        torch.from_numpy(answered), torch.from_numpy(true), num_classes=size
    )
    return np.asarray(counts.numpy(), dtype=np.int64)


def _pairs(true: Labels, answered: Labels, num_classes: int) -> list[tuple[int, int, int]]:
    codes, counts = np.unique(true * num_classes + answered, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_PAIRS]
    rows, columns = np.divmod(codes[order], num_classes)
    return list(zip(rows.tolist(), columns.tolist(), counts[order].tolist(), strict=True))
