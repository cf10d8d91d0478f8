"""Verification accuracy over ten folds of pairs, as it is reported on LFW."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from arcloop.evaluation.metrics.sample import Sample

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_FOLDS = 10
_AT_ONCE = 512
_MOST_OF_A_KIND = 3000  # as many as LFW has


class Pairs(NamedTuple):
    """As many pairs of one class as of different ones.

    Attributes:
        first: int64 [P], positions of one side.
        second: int64 [P], positions of the other.
        same: bool [P], whether they are of one class.
    """

    first: Labels
    second: Labels
    same: Bools


def draw_pairs(labels_N: Labels) -> Pairs:
    """Draw pairs at random, always the same; the two kinds take turns.

    No image is in two pairs of one class; in pairs of different classes it is in two at most. Folds
    share classes, which those of LFW do not: a store may have fewer classes than there are folds.

    Args:
        labels_N: Class of each image.

    >>> draw_pairs(np.array([0, 0, 1, 1])).same
    array([ True, False,  True, False])
    """
    random = np.random.default_rng(0)
    order = random.permutation(len(labels_N))
    order = order[np.argsort(labels_N[order], kind="stable")]  # by class, at random within it
    same = _neighbours(order, labels_N)
    # Half a turn away lies another class, unless one class has half of all images.
    across = np.stack([order, np.roll(order, len(order) // 2)], axis=1)
    across = across[labels_N[across[:, 0]] != labels_N[across[:, 1]]]
    count = min(len(same), len(across), _MOST_OF_A_KIND)
    kinds = [random.permutation(kind)[:count] for kind in (same, across)]
    pairs_P2 = np.stack(kinds, axis=1).reshape(-1, 2)
    return Pairs(pairs_P2[:, 0], pairs_P2[:, 1], np.arange(2 * count) % 2 == 0)


def _neighbours(order: Labels, labels_N: Labels) -> Labels:
    """Pair the images of each class two by two, [P, 2]."""
    labels = labels_N[order]
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    first = np.flatnonzero((place[:-1] % 2 == 0) & (labels[:-1] == labels[1:]))
    return np.stack([order[first], order[first + 1]], axis=1)


def fold_accuracies(similarities_P: Floats, same_P: Bools, folds: int = _FOLDS) -> Floats:
    """Accuracy on each fold at the threshold that is best on the others.

    Huang et al., "Labeled Faces in the Wild", UMass Amherst 07-49, 2007, view 2.

    Args:
        similarities_P: Cosines.
        same_P: Whether the pair is of one class. Two by two, pairs belong to fold 0, 1, ...
        folds: Number of folds.

    Returns:
        float64 [folds] in [0, 1].

    >>> fold_accuracies(np.array([0.9, 0.1, 0.8, 0.85]), np.array([True, False] * 2), folds=2)
    array([1. , 0.5])
    """
    fold_P = np.arange(len(same_P)) // 2 % folds
    accuracies = []
    for fold in range(folds):
        out_P = fold_P == fold
        threshold = best_threshold(similarities_P[~out_P], same_P[~out_P])
        accuracies.append(np.mean((similarities_P[out_P] >= threshold) == same_P[out_P]))
    return np.array(accuracies)


def best_threshold(similarities_P: Floats, same_P: Bools) -> float:
    """Return the threshold from which upwards accepting a pair is right most often.

    It lies half-way between two neighbouring similarities, or is the lowest of all; of equally good
    ones it is the lowest.

    Args:
        similarities_P: Cosines.
        same_P: Whether the pair is of one class.

    >>> best_threshold(np.array([0.9, 0.7, 0.5, 0.1]), np.array([True, True, False, False]))
    0.6
    """
    values, places = np.unique(similarities_P, return_inverse=True)
    same = np.bincount(places[same_P], minlength=len(values))
    different = np.bincount(places[~same_P], minlength=len(values))
    accepted = same[::-1].cumsum()[::-1]
    rejected = different.cumsum() - different
    best = int(np.argmax(accepted + rejected))
    return float((values[max(best - 1, 0)] + values[best]) / 2)


def pair_metrics(sample: Sample) -> dict[str, float]:
    """Return mean and standard deviation of the accuracy over ten folds.

    Args:
        sample: Images that pairs are drawn from.

    Returns:
        Nothing if there are not enough images for a pair of both kinds in every fold.
    """
    pairs = draw_pairs(sample.labels)
    if len(pairs.same) < 2 * _FOLDS:
        return {}
    accuracies = fold_accuracies(_cosines(sample, *pairs[:2]), pairs.same)
    return {"pair_accuracy": float(accuracies.mean()), "pair_accuracy_std": float(accuracies.std())}


def _cosines(sample: Sample, one_P: Labels, other_P: Labels) -> Floats:
    """Compare pairs, some at a time: in float64 all rows of all pairs are many times the sample."""
    cosines_P = np.empty(len(one_P))
    for start in range(0, len(one_P), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        # Row by row: no matrix product, whose last bits depend on its shape.
        one, other = (sample.embeddings[side[part]].astype(np.float64) for side in (one_P, other_P))
        cosines_P[part] = (one * other).sum(axis=1)
    return cosines_P
