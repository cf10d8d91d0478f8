"""Verification accuracy over ten folds of pairs, as reported on LFW."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from arcloop.retrieval.embed import Embeddings, Labels

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_FOLDS = 10
_PAIRS_AT_ONCE = 512
_MAX_PAIRS_PER_KIND = 3000  # as on LFW


class Pairs(NamedTuple):
    """Equal numbers of pairs of the same class and of different classes.

    Attributes:
        first: int64 [P], row of the first image.
        second: int64 [P], row of the second image.
        same: bool [P], whether both have the same class.
    """

    first: Labels
    second: Labels
    same: Bools


def draw_pairs(labels_N: Labels) -> Pairs:
    """Draw random pairs with a fixed seed, alternately of the same and of different classes.

    An image is in at most one pair of the same class and in at most two of different classes.
    Unlike on LFW, folds share classes, because a store may have fewer classes than folds.

    Args:
        labels_N: Class of each image.

    >>> draw_pairs(np.array([0, 0, 1, 1])).same
    array([ True, False,  True, False])
    """
    random = np.random.default_rng(0)
    order = random.permutation(len(labels_N))
    order = order[np.argsort(labels_N[order], kind="stable")]  # by class, random within a class
    same = _pairs_within_classes(order, labels_N)
    # The row half the length away has another class, unless one class has half of all images.
    across = np.stack([order, np.roll(order, len(order) // 2)], axis=1)
    across = across[labels_N[across[:, 0]] != labels_N[across[:, 1]]]
    count = min(len(same), len(across), _MAX_PAIRS_PER_KIND)
    kinds = [random.permutation(kind)[:count] for kind in (same, across)]
    pairs_P2 = np.stack(kinds, axis=1).reshape(-1, 2)
    return Pairs(pairs_P2[:, 0], pairs_P2[:, 1], np.arange(2 * count) % 2 == 0)


def _pairs_within_classes(order: Labels, labels_N: Labels) -> Labels:
    """Return disjoint pairs of consecutive images of each class, [P, 2]."""
    labels = labels_N[order]
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    position = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    first = np.flatnonzero((position[:-1] % 2 == 0) & (labels[:-1] == labels[1:]))
    return np.stack([order[first], order[first + 1]], axis=1)


def fold_accuracies(similarities_P: Floats, same_P: Bools, folds: int = _FOLDS) -> Floats:
    """Return the accuracy on each fold at the threshold that is best on the other folds.

    Huang et al., "Labeled Faces in the Wild", UMass Amherst 07-49, 2007, view 2.

    Args:
        similarities_P: Cosines.
        same_P: Whether both have the same class. Pairs 2i and 2i + 1 belong to fold i modulo folds.
        folds: Number of folds.

    Returns:
        float64 [folds] in [0, 1].

    >>> fold_accuracies(np.array([0.9, 0.1, 0.8, 0.85]), np.array([True, False] * 2), folds=2)
    array([1. , 0.5])
    """
    fold_P = np.arange(len(same_P)) // 2 % folds
    accuracies = []
    for fold in range(folds):
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


def pair_metrics(embeddings_ND: Embeddings, labels_N: Labels) -> dict[str, float]:
    """Return mean and standard deviation of the verification accuracy over ten folds.

    Args:
        embeddings_ND: float32, rows of norm 1, from which pairs are drawn.
        labels_N: Class of each row.

    Returns:
        An empty dict if there are too few images for one pair of each kind per fold.
    """
    pairs = draw_pairs(labels_N)
    if len(pairs.same) < 2 * _FOLDS:
        return {}
    cosines_P = np.empty(len(pairs.same))
    for start in range(0, len(cosines_P), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        first, second = (
            embeddings_ND[rows[part]].astype(np.float64) for rows in (pairs.first, pairs.second)
        )
        cosines_P[part] = (first * second).sum(axis=1)
    accuracies = fold_accuracies(cosines_P, pairs.same)
    return {"pair_accuracy": float(accuracies.mean()), "pair_accuracy_std": float(accuracies.std())}
