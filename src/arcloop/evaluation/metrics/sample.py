"""Random samples of embeddings, and the accuracy of pairs in a sample.

Shapes: N images, P pairs, M pairs of different classes, D dimensions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from arcloop.evaluation.metrics.verification import Rates
from arcloop.retrieval.embed import Chunks, Embeddings, Labels

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

FOLDS = 10
_MAX_PAIRS_PER_KIND = 300  # of a fold, as on LFW
_MAX_IMAGES = 1000  # of a fold; all of its pairs are compared for the hardest ones
_HARDEST = 0.01
_SEED = 0


class Sample(NamedTuple):
    """Randomly sampled rows of a split.

    Attributes:
        rows: Row numbers in the split, int64 [N], ascending.
        embeddings: float32 [N, D].
        labels: Class of each row, int64 [N].
    """

    rows: Labels
    embeddings: Embeddings
    labels: Labels

    @classmethod
    def draw(cls, gallery: Chunks, labels_G: Labels, capacity: int) -> Sample:
        """Return at most `capacity` rows of a gallery, drawn at random."""
        rows = sampled_rows(len(labels_G), capacity)
        first_row, parts = 0, []
        for embeddings_ND, labels_N in gallery():
            parts.append(embeddings_ND[rows_in(rows, first_row, len(labels_N))])
            first_row += len(labels_N)
        return cls(rows, np.concatenate(parts), labels_G[rows])

    def subset(self, rows: Labels) -> Sample:
        """Return the sample of some of its rows, ascending."""
        at = np.searchsorted(self.rows, rows)
        return Sample(rows, self.embeddings[at], self.labels[at])


def sampled_rows(total: int, capacity: int) -> Labels:
    """Choose rows uniformly at random with a fixed seed.

    A smaller sample is a subset of a larger one.

    Args:
        total: Number of rows.
        capacity: Maximum number of rows to choose.

    Returns:
        int64, ascending.

    >>> sampled_rows(10, 3), sampled_rows(2, 3)
    (array([2, 4, 6]), array([0, 1]))
    """
    return np.sort(np.random.default_rng(0).permutation(total)[:capacity])


def rows_in(rows: Labels, first_row: int, count: int) -> Labels:
    """Return the positions of sampled rows in a batch of `count` rows."""
    first, last = np.searchsorted(rows, [first_row, first_row + count])
    return rows[first:last] - first_row


def deal_images(labels_N: Labels, random: np.random.Generator) -> list[tuple[Labels, Labels]]:
    """Divide images into ten folds, so that an image is in one fold only.

    Images of a class are paired at random, and a pair stays together. Pairs and single images are
    dealt to the folds at random. Unlike on LFW, folds share classes, because a store may have fewer
    classes than folds.

    Args:
        labels_N: Class of each image.
        random: Source of the random order.

    Returns:
        For each fold, rows of its images, int64, at most 1,000; and its pairs of the same class,
        int64 [P, 2].
    """
    order = random.permutation(len(labels_N))
    order = order[np.argsort(labels_N[order], kind="stable")]  # by class, random within a class
    starts = np.flatnonzero(np.diff(labels_N[order], prepend=-1))
    position = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    firsts = np.flatnonzero(position % 2 == 0)  # each starts a pair, or is the last of its class
    folds = []
    for units in np.array_split(random.permutation(firsts), FOLDS):
        units = units[: _MAX_IMAGES // 2]
        seconds = np.minimum(units + 1, len(order) - 1)
        paired = position[seconds] % 2 == 1
        same_P2 = np.stack([order[units[paired]], order[seconds[paired]]], axis=1)
        folds.append((np.concatenate([same_P2.ravel(), order[units[~paired]]]), same_P2))
    return folds


def draw_negatives(
    embeddings_ND: Embeddings, labels_N: Labels, count: int, random: np.random.Generator
) -> dict[str, Labels]:
    """Draw pairs of images of different classes in three ways.

    Args:
        embeddings_ND: float32, rows of norm 1, the images of one fold.
        labels_N: Class of each image.
        count: Maximum number of pairs of each kind.
        random: Source of the draws.

    Returns:
        Kind -> pairs of rows, int64 [P, 2], where P is `count`, or the number of all pairs of
        different classes if that is less. "": all pairs are equally likely. "_balanced": all pairs
        of classes are equally likely, and so are the pairs of images of two classes; drawn with
        replacement. "_hard": all of the 1% most similar pairs are equally likely; if these are
        fewer than P, the P most similar pairs.
    """
    first_M, second_M = np.nonzero(np.triu(labels_N[:, None] != labels_N))
    count = min(count, len(first_M))
    if not count:
        return dict.fromkeys(("", "_balanced", "_hard"), np.empty((0, 2), np.int64))
    _, class_N, size_C = np.unique(labels_N, return_inverse=True, return_counts=True)
    weight_N = 1 / size_C[class_N]
    weight_M = weight_N[first_M] * weight_N[second_M]
    cosine_M = (embeddings_ND @ embeddings_ND.T)[first_M, second_M]
    hardest = max(count, math.ceil(_HARDEST * len(cosine_M)))
    hard_H = np.flatnonzero(cosine_M >= np.partition(cosine_M, -hardest)[-hardest])
    chosen = {
        "": random.choice(len(first_M), count, replace=False),
        "_balanced": random.choice(len(first_M), count, p=weight_M / weight_M.sum()),
        "_hard": random.choice(hard_H, count, replace=False),
    }
    return {kind: np.stack([first_M[at], second_M[at]], axis=1) for kind, at in chosen.items()}


def fold_accuracies(similarities_P: Floats, same_P: Bools, fold_P: Labels) -> Floats:
    """Return the accuracy on each fold at the threshold that is best on the other folds.

    Huang et al., "Labeled Faces in the Wild", UMass Amherst 07-49, 2007, view 2.

    Args:
        similarities_P: Cosines.
        same_P: Whether both have the same class.
        fold_P: Fold of each pair, from 0; at least two folds, none of them empty.

    Returns:
        float64 [folds] in [0, 1].

    >>> cosines, same = np.array([0.9, 0.1, 0.8, 0.85]), np.array([True, False] * 2)
    >>> fold_accuracies(cosines, same, np.array([0, 0, 1, 1]))
    array([1. , 0.5])
    """
    accuracies = []
    for fold in range(fold_P.max() + 1):
        test_P = fold_P == fold
        threshold = best_threshold(similarities_P[~test_P], same_P[~test_P])
        accuracies.append(np.mean((similarities_P[test_P] >= threshold) == same_P[test_P]))
    return np.array(accuracies)


def best_threshold(similarities_P: Floats, same_P: Bools) -> float:
    """Return the threshold with the highest accuracy; pairs at or above it are accepted.

    Candidates are the lowest similarity and the midpoints between consecutive similarities. If
    several have the highest accuracy, the lowest of them is returned.

    Args:
        similarities_P: Cosines.
        same_P: Whether both have the same class.

    >>> best_threshold(np.array([0.9, 0.7, 0.5, 0.1]), np.array([True, True, False, False]))
    0.6
    """
    values, value_P = np.unique(similarities_P, return_inverse=True)
    same = np.bincount(value_P[same_P], minlength=len(values))
    different = np.bincount(value_P[~same_P], minlength=len(values))
    accepted = same[::-1].cumsum()[::-1]
    rejected = different.cumsum() - different
    best = int(np.argmax(accepted + rejected))
    return float((values[max(best - 1, 0)] + values[best]) / 2)


def pair_metrics(embeddings_ND: Embeddings, labels_N: Labels) -> Rates:
    """Return the verification accuracy over ten folds, for three kinds of negative pairs.

    Every fold has as many pairs of the same class as of different classes, at most 300. See
    `deal_images` and `draw_negatives`. The seed of the draws is fixed.

    Args:
        embeddings_ND: float32, rows of norm 1, from which pairs are drawn.
        labels_N: Class of each row.

    Returns:
        Means over the folds for uniformly drawn, balanced and hard negatives, and the standard
        deviation for the first.
    """
    random = np.random.default_rng(_SEED)
    pairs: dict[str, list[Labels]] = {}
    counts = []
    for rows, same_P2 in deal_images(labels_N, random):
        most = min(len(same_P2), _MAX_PAIRS_PER_KIND)
        drawn = draw_negatives(embeddings_ND[rows], labels_N[rows], most, random)
        counts.append(len(drawn[""]))
        for kind, negatives_P2 in drawn.items():
            pairs.setdefault(kind, []).extend((same_P2[: counts[-1]], rows[negatives_P2]))
    if not all(counts):
        reason = (
            f"not measurable with {len(labels_N):,} images; each of the {FOLDS} folds needs a "
            "pair of the same class and one of different classes"
        )
        return dict.fromkeys(("pair_accuracy", "pair_accuracy_std", "pair_accuracy_balanced",
                              "pair_accuracy_hard"), reason)  # fmt: skip
    fold_P = np.repeat(np.arange(FOLDS), 2 * np.array(counts))
    same_P = np.repeat(np.arange(2 * FOLDS) % 2 == 0, np.repeat(counts, 2))
    rates: Rates = {}
    for kind, parts in pairs.items():
        rows_PD, others_PD = (embeddings_ND[column] for column in np.concatenate(parts).T)
        cosines_P = np.einsum("pd,pd->p", rows_PD, others_PD, dtype=np.float64)
        accuracies = fold_accuracies(cosines_P, same_P, fold_P)
        rates[f"pair_accuracy{kind}"] = float(accuracies.mean())
        if not kind:
            rates["pair_accuracy_std"] = float(accuracies.std())
    return rates
