"""Clustering metrics: agreement of k-means clusters of the embeddings with their classes."""

from __future__ import annotations

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from arcloop.retrieval.embed import Embeddings, Labels

_ITERATIONS, _SEED = 20, 0


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
