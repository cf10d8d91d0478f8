"""Do the embeddings fall into their classes by themselves? k-means against the labels."""

from __future__ import annotations

import math

import faiss
import numpy as np
import numpy.typing as npt

from arcloop.evaluation.metrics.sample import Sample

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_ITERATIONS, _SEED = 20, 0


def cluster(embeddings_ND: npt.NDArray[np.float32], clusters: int) -> Labels:
    """Assign rows to clusters by k-means.

    It starts from k-means++ (Arthur and Vassilvitskii, SODA 2007): from rows drawn at random, two
    classes often end up as one. It runs on one core, for sums of several have other last bits.

    Args:
        embeddings_ND: Rows of norm 1, at least as many as clusters.
        clusters: k.

    Returns:
        int64 [N], cluster of each row.
    """
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        kmeans = faiss.Kmeans(
            embeddings_ND.shape[1],
            clusters,
            niter=_ITERATIONS,
            seed=_SEED,
            init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
            min_points_per_centroid=1,
            max_points_per_centroid=len(embeddings_ND),
        )
        kmeans.train(embeddings_ND)
        _, nearest_N1 = kmeans.index.search(embeddings_ND, 1)
    finally:
        faiss.omp_set_num_threads(threads)
    return np.asarray(nearest_N1[:, 0], dtype=np.int64)


def nmi(labels_N: Labels, clusters_N: Labels) -> float:
    """Normalised mutual information: over the mean of the entropies of classes and clusters.

    Vinh et al., JMLR 11 (2010), NMI_sum.

    Args:
        labels_N: Class of each row.
        clusters_N: Cluster of each row.

    Returns:
        In [0, 1]; 1 if there is one class and one cluster.

    >>> round(nmi(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 2])), 4)
    0.8
    """
    shared, mean_entropy = _information(labels_N, clusters_N)
    return min(1.0, max(0.0, shared / mean_entropy)) if mean_entropy > 0 else 1.0


def ami(labels_N: Labels, clusters_N: Labels) -> float:
    """Adjusted mutual information: 0 is what chance gives, unlike NMI, which grows with clusters.

    (MI - E[MI]) / (mean entropy - E[MI]), where E[MI] is over all assignments with these sizes of
    classes and clusters: Vinh et al., JMLR 11 (2010), AMI_sum and equation 24a.

    Args:
        labels_N: Class of each row.
        clusters_N: Cluster of each row.

    Returns:
        At most 1; negative if worse than chance. 1 where both have one part, or one of each row.

    >>> round(ami(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 2])), 4)
    0.5714
    """
    sizes = [np.unique(part, return_counts=True)[1] for part in (labels_N, clusters_N)]
    if len(sizes[0]) == len(sizes[1]) in (1, len(labels_N)):
        return 1.0
    shared, mean_entropy = _information(labels_N, clusters_N)
    chance = expected_information(*sizes)
    room = mean_entropy - chance
    # Never zero, only as small as rounding: then both are as chance gives.
    return (shared - chance) / math.copysign(max(abs(room), np.finfo(np.float64).eps), room)


def _information(labels_N: Labels, clusters_N: Labels) -> tuple[float, float]:
    """Return the mutual information and the mean of the two entropies, in nats."""
    n = len(labels_N)
    _, label_N = np.unique(labels_N, return_inverse=True)
    _, cluster_N = np.unique(clusters_N, return_inverse=True)
    label_sizes, cluster_sizes = np.bincount(label_N), np.bincount(cluster_N)
    cells, counts = np.unique(label_N * len(cluster_sizes) + cluster_N, return_counts=True)
    rows, columns = np.divmod(cells, len(cluster_sizes))
    expected = label_sizes[rows] * cluster_sizes[columns] / n
    shared = math.fsum(counts / n * np.log(counts / expected))
    return shared, (_entropy(label_sizes) + _entropy(cluster_sizes)) / 2


def _entropy(sizes: Labels) -> float:
    shares = sizes / sizes.sum()
    return -math.fsum(shares * np.log(shares))


def expected_information(label_sizes: Labels, cluster_sizes: Labels) -> float:
    """Return the mutual information that chance gives, in nats.

    Parts of one size expect the same, and the sizes of N rows are at most sqrt(2 N) different
    ones: so many classes and clusters cost no more than the sum over their sizes.

    Args:
        label_sizes: Rows of each class, at least 1.
        cluster_sizes: Rows of each cluster, at least 1.

    >>> round(expected_information(np.array([2, 2]), np.array([2, 2])), 4)
    0.231
    """
    n = int(label_sizes.sum())
    log_factorial = np.concatenate([[0.0], np.log(np.arange(1, n + 1)).cumsum()])
    total = []
    for a, times_a in zip(*np.unique(label_sizes, return_counts=True), strict=True):
        for b, times_b in zip(*np.unique(cluster_sizes, return_counts=True), strict=True):
            both = np.arange(max(1, a + b - n), min(a, b) + 1)
            log_probability = (
                log_factorial[a] + log_factorial[b] + log_factorial[n - a] + log_factorial[n - b]
                - log_factorial[n] - log_factorial[both] - log_factorial[a - both]
                - log_factorial[b - both] - log_factorial[n - a - b + both]
            )  # fmt: skip
            terms = both / n * np.log(n * both / (a * b)) * np.exp(log_probability)
            total.append(int(times_a) * int(times_b) * math.fsum(terms))
    return math.fsum(total)


def clustering_metrics(sample: Sample) -> dict[str, float]:
    """Return NMI and AMI of k-means with as many clusters as the sample has classes.

    Args:
        sample: Rows to cluster.

    Returns:
        Nothing if there are fewer than two classes, or no class has two rows.
    """
    classes = len(np.unique(sample.labels))
    if not 2 <= classes < len(sample.labels):
        return {}
    found = cluster(sample.embeddings, classes)
    return {"nmi": nmi(sample.labels, found), "ami": ami(sample.labels, found)}
