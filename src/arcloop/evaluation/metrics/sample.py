"""Random samples of embeddings, and the metrics of a sample: pair accuracy and clustering."""

from __future__ import annotations

from typing import NamedTuple

import faiss
import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from arcloop.retrieval.embed import Chunks, Embeddings, Labels

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_FOLDS = 10
_MAX_PAIRS_PER_KIND = 3000  # as on LFW
_ITERATIONS, _SEED = 20, 0  # of k-means


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


def draw_pairs(labels_N: Labels) -> tuple[Labels, Labels, Bools]:
    """Draw random pairs with a fixed seed, alternately of the same and of different classes.

    An image is in at most one pair of the same class and in at most two of different classes.
    Unlike on LFW, folds share classes, because a store may have fewer classes than folds.

    Args:
        labels_N: Class of each image.

    Returns:
        int64 [P], row of the first image; int64 [P], row of the second image; bool [P], whether
        both have the same class.

    >>> draw_pairs(np.array([0, 0, 1, 1]))[2]
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
    return pairs_P2[:, 0], pairs_P2[:, 1], np.arange(2 * count) % 2 == 0


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
    first_P, second_P, same_P = draw_pairs(labels_N)
    if len(same_P) < 2 * _FOLDS:
        return {}
    rows_PD, others_PD = embeddings_ND[first_P], embeddings_ND[second_P]
    cosines_P = np.einsum("pd,pd->p", rows_PD, others_PD, dtype=np.float64)
    accuracies = fold_accuracies(cosines_P, same_P)
    return {"pair_accuracy": float(accuracies.mean()), "pair_accuracy_std": float(accuracies.std())}


def kmeans(embeddings_ND: Embeddings, clusters: int) -> Labels:
    """Assign rows to clusters by k-means.

    Centroids are initialised by k-means++ (Arthur and Vassilvitskii, SODA 2007), because random
    initial rows often merge two classes. One thread is used, so that the rounding of sums is the
    same in every run.

    Args:
        embeddings_ND: float32, rows of norm 1; N >= `clusters`.
        clusters: k.

    Returns:
        int64 [N], cluster of each row.
    """
    with threadpool_limits(1):
        model = faiss.Kmeans(
            embeddings_ND.shape[1],
            clusters,
            niter=_ITERATIONS,
            seed=_SEED,
            init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
            min_points_per_centroid=1,
            max_points_per_centroid=len(embeddings_ND),
        )
        model.train(embeddings_ND)
        _, nearest_N1 = model.index.search(embeddings_ND, 1)
    return np.asarray(nearest_N1[:, 0], dtype=np.int64)


def clustering_metrics(embeddings_ND: Embeddings, labels_N: Labels) -> dict[str, float]:
    """Return NMI and AMI of k-means with as many clusters as there are classes.

    NMI is the mutual information divided by the mean of the entropies of classes and clusters. AMI
    is adjusted for chance: 0 is the expected value of a random assignment. Source: Vinh et al.,
    JMLR 11 (2010), NMI_sum and AMI_sum.

    Args:
        embeddings_ND: float32, rows of norm 1.
        labels_N: Class of each row.

    Returns:
        An empty dict if there are fewer than two classes, or no class has two rows.
    """
    from sklearn import metrics  # imported here because evaluate_retrieval does not need it

    classes = len(np.unique(labels_N))
    if not 2 <= classes < len(labels_N):
        return {}
    clusters_N = kmeans(embeddings_ND, classes)
    return {
        "nmi": float(metrics.normalized_mutual_info_score(labels_N, clusters_N)),
        "ami": float(metrics.adjusted_mutual_info_score(labels_N, clusters_N)),
    }
