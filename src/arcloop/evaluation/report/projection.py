"""Embeddings on a plane, near ones near: for the eye, not for measuring."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Embeddings = npt.NDArray[np.float32]
Points = npt.NDArray[np.float32]

LEAST_ROWS = 10
_NEIGHBOURS = 15
_STEPS, _EXAGGERATED_STEPS, _EXAGGERATION = 300, 100, 12.0
_PLACING_NEIGHBOURS, _PLACING_SHARPNESS = 5, 20.0


def project(gallery_ND: Embeddings, queries_QD: Embeddings) -> tuple[Points, Points]:
    """Draw a map of the gallery and place queries on it.

    The map is an exact t-SNE (van der Maaten & Hinton, JMLR 2008) of the gallery rows. A query lies
    among the gallery rows nearest to it, as the search would find them, so a query that is drawn
    among another class is one that looks like that class to the model.

    Args:
        gallery_ND: float32, rows of norm 1; from `LEAST_ROWS` to about a thousand, for time and
            memory grow with the square of N.
        queries_QD: float32, rows of norm 1.

    Returns:
        Coordinates [N, 2] and [Q, 2]; the same in every run.
    """
    gallery_N2 = _tsne(gallery_ND)
    cos_QN = queries_QD @ gallery_ND.T
    k = min(_PLACING_NEIGHBOURS, len(gallery_ND))
    nearest_QK = np.argpartition(-cos_QN, k - 1, axis=1)[:, :k]
    weights_QK = np.exp(_PLACING_SHARPNESS * np.take_along_axis(cos_QN, nearest_QK, axis=1))
    weights_QK /= weights_QK.sum(axis=1, keepdims=True)
    return gallery_N2, np.einsum("qk,qkc->qc", weights_QK, gallery_N2[nearest_QK])


def _tsne(rows_ND: Embeddings) -> Points:
    affinity_NN = _affinities(rows_ND)
    points_N2 = _principal_plane(rows_ND)
    velocity_N2 = np.zeros_like(points_N2)
    rate = np.float32(len(rows_ND) / _EXAGGERATION)  # Belkina et al., Nat. Commun. 2019
    for step in range(_STEPS):
        early = step < _EXAGGERATED_STEPS
        norm_N = np.square(points_N2).sum(axis=1)
        near_NN = points_N2 @ (-2 * points_N2.T)
        near_NN += norm_N[:, None] + 1
        near_NN += norm_N
        np.reciprocal(near_NN, out=near_NN)
        np.fill_diagonal(near_NN, 0)
        force_NN = affinity_NN * np.float32(_EXAGGERATION if early else 1)
        force_NN -= near_NN / near_NN.sum()
        force_NN *= near_NN
        gradient_N2 = 4 * (force_NN.sum(axis=1)[:, None] * points_N2 - force_NN @ points_N2)
        velocity_N2 = (0.5 if early else 0.8) * velocity_N2 - rate * gradient_N2
        points_N2 = points_N2 + velocity_N2
    return points_N2


def _affinities(rows_ND: Embeddings) -> npt.NDArray[np.float32]:
    """Equal affinity to each near neighbour: as good as a tuned Gaussian (arXiv 2007.08902)."""
    k = min(_NEIGHBOURS, len(rows_ND) - 1)
    cos_NN = rows_ND @ rows_ND.T
    np.fill_diagonal(cos_NN, -np.inf)
    affinity_NN = np.zeros_like(cos_NN)
    np.put_along_axis(affinity_NN, np.argpartition(-cos_NN, k - 1, axis=1)[:, :k], 1, axis=1)
    affinity_NN += affinity_NN.T
    return np.asarray(affinity_NN / affinity_NN.sum())


def _principal_plane(rows_ND: Embeddings) -> Points:
    centred_ND = rows_ND - rows_ND.mean(axis=0)
    _, axes_D2 = np.linalg.eigh(centred_ND.T @ centred_ND)
    points_N2 = centred_ND @ axes_D2[:, -2:]
    # An eigenvector's sign is arbitrary: the largest entry is made positive.
    points_N2 *= np.sign(points_N2[np.abs(points_N2).argmax(axis=0), [0, 1]])
    return np.asarray(points_N2 / (points_N2.std() + 1e-12) * 1e-2, dtype=np.float32)
