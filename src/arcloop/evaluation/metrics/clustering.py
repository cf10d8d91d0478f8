"""Clustering of embeddings by k-means, compared with the classes.

Shapes: N images, D dimensions, C clusters, T candidates for a centroid.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from threadpoolctl import threadpool_limits

from arcloop.evaluation.metrics.verification import Rates
from arcloop.retrieval.embed import Embeddings, Labels

MAX_CLASSES = 1000
"""Classes that are clustered at most; the time grows with classes x images."""
_ITERATIONS, _MAX_STARTS, _CLUSTERS_IN_ALL_STARTS = 20, 10, 500


def kmeans(embeddings_ND: Embeddings, clusters: int, seed: int = 0) -> Labels:
    """Assign rows to clusters by k-means, with several starts.

    The assignment with the lowest sum of squared distances is returned. The number of starts is 500
    divided by the number of clusters, at least 1 and at most 10: with many clusters, a start takes
    long, and the merging of two classes changes NMI by little. One thread is used, so that the
    rounding of sums is the same in every run.

    Args:
        embeddings_ND: float32, rows of norm 1; N >= `clusters`.
        clusters: k.
        seed: Seed of the starts.

    Returns:
        int64 [N], cluster of each row.
    """
    # imported here because evaluate_retrieval does not need it
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    random = np.random.default_rng(seed)
    centred_ND = embeddings_ND - embeddings_ND.mean(axis=0)  # exact distances if all are close
    best = None
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
        for _ in range(min(max(_CLUSTERS_IN_ALL_STARTS // clusters, 1), _MAX_STARTS)):
            start_CD = _initial_centroids(centred_ND, clusters, random)
            model = KMeans(clusters, init=start_CD, n_init=1, max_iter=_ITERATIONS).fit(centred_ND)
            if best is None or model.inertia_ < best.inertia_:
                best = model
    assert best is not None
    return np.asarray(best.labels_, dtype=np.int64)


def _initial_centroids(
    rows_ND: Embeddings, clusters: int, random: np.random.Generator
) -> Embeddings:
    """Choose rows as centroids by greedy k-means++.

    Each centroid is the best of 2 + log(k) rows, drawn in proportion to their squared distance to
    the nearest centroid (Arthur and Vassilvitskii, SODA 2007, section 5). A single draw often
    leaves a class without a centroid.
    """
    norms_N = np.einsum("nd,nd->n", rows_ND, rows_ND)
    nearest_N = np.full(len(rows_ND), np.inf)
    chosen = []
    candidates_T = random.integers(len(rows_ND), size=1)
    for _ in range(clusters):
        cross_TN = rows_ND[candidates_T] @ rows_ND.T
        distance_TN = np.maximum(norms_N + norms_N[candidates_T, None] - 2 * cross_TN, 0)
        distance_TN = np.minimum(distance_TN, nearest_N)
        best = int(distance_TN.sum(axis=1).argmin())
        chosen.append(candidates_T[best])
        nearest_N = distance_TN[best]
        sum_N = nearest_N.cumsum()
        draws_T = random.random(2 + int(math.log(clusters))) * sum_N[-1]
        candidates_T = np.minimum(sum_N.searchsorted(draws_T, side="right"), len(rows_ND) - 1)
    return rows_ND[chosen]


def clustering_metrics(embeddings_ND: Embeddings, labels_N: Labels) -> Rates:
    """Return NMI and AMI of k-means with as many clusters as there are classes.

    If there are more than 1,000 classes, the rows of 1,000 classes are clustered, chosen at random
    with a fixed seed.

    NMI is the mutual information divided by the mean of the entropies of classes and clusters. AMI
    is adjusted for chance: 0 is the expected value of a random assignment. Source: Vinh et al.,
    JMLR 11 (2010), NMI_sum and AMI_sum.

    Args:
        embeddings_ND: float32, rows of norm 1.
        labels_N: Class of each row.
    """
    from sklearn import metrics  # imported here because evaluate_retrieval does not need it

    names, labels_N = np.unique(labels_N, return_inverse=True)
    if (classes := len(names)) > MAX_CLASSES:
        is_chosen_N = (np.random.default_rng(0).permutation(classes) < MAX_CLASSES)[labels_N]
        embeddings_ND, labels_N = embeddings_ND[is_chosen_N], labels_N[is_chosen_N]
        classes = MAX_CLASSES
    if not 2 <= classes < len(labels_N):
        reason = "not measurable without two classes, one of them with two images"
        return dict.fromkeys(("nmi", "ami"), reason)
    clusters_N = kmeans(embeddings_ND, classes)
    return {
        "nmi": float(metrics.normalized_mutual_info_score(labels_N, clusters_N)),
        "ami": float(metrics.adjusted_mutual_info_score(labels_N, clusters_N)),
    }
