"""A random sample of a stream whose length nobody knows, in bounded memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Sample:
    """Keeps `capacity` rows of a stream, each row as likely as any other.

    Each row draws a random number and the smallest stay. The numbers come in row order, so the
    sample depends on the rows and not on how they are cut into chunks, and it is the same in every
    run. A stride would keep some classes only where labels take turns.

    Args:
        capacity: Most rows kept.
        embedding_dim: D.

    Attributes:
        embeddings: float32 [N, D] of the rows kept, N <= capacity, in row order.
        labels: int64 [N], their classes.
        rows: int64 [N], their positions in the stream.
    """

    def __init__(self, capacity: int, embedding_dim: int) -> None:
        self.embeddings: Embeddings = np.empty((0, embedding_dim), np.float32)
        self.labels: Labels = np.empty(0, np.int64)
        self.rows: Labels = np.empty(0, np.int64)
        self._draws = np.empty(0, np.float64)
        self._random = np.random.default_rng(0)
        self._capacity = capacity
        self._seen = 0

    def add(self, embeddings_BD: Embeddings, labels_B: Labels) -> None:
        """Offer the next rows of the stream."""
        rows_B = np.arange(self._seen, self._seen + len(labels_B))
        self._seen += len(labels_B)
        draws_B = self._random.random(len(labels_B))
        # Only what can stay is copied: of a long stream, next to nothing.
        bound = self._draws.max(initial=0) if len(self._draws) == self._capacity else 1
        new = np.flatnonzero(draws_B < bound)
        if not len(new):
            return
        draws = np.concatenate([self._draws, draws_B[new]])
        stay = np.sort(np.argsort(draws)[: self._capacity])
        self._draws = draws[stay]
        self.embeddings = np.concatenate([self.embeddings, embeddings_BD[new]])[stay]
        self.labels = np.concatenate([self.labels, labels_B[new]])[stay]
        self.rows = np.concatenate([self.rows, rows_B[new]])[stay]
