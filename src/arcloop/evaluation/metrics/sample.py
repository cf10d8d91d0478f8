"""A random sample of the rows of a split, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """Some rows of a split.

    Attributes:
        embeddings: float32 [N, D], in row order.
        labels: int64 [N], their classes.
        rows: int64 [N], their positions in the split.
    """

    embeddings: Embeddings
    labels: Labels
    rows: Labels

    @classmethod
    def joined(cls, parts: Sequence[Sample]) -> Sample:
        """Put samples of successive parts of a split together."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.embeddings for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.rows for part in parts]),
        )


def sampled_rows(total: int, capacity: int) -> Labels:
    """Choose rows to keep, each as likely as any other; always the same ones.

    Each row draws a random number and the smallest stay, so a sample of fewer rows is part of one
    of more. A stride would keep some classes only where labels take turns.

    Args:
        total: Rows there are.
        capacity: Most rows kept.

    Returns:
        int64, ascending.

    >>> sampled_rows(10, 3), sampled_rows(2, 3)
    (array([1, 2, 3]), array([0, 1]))
    """
    if capacity >= total:
        return np.arange(total)
    draws = np.random.default_rng(0).random(total)
    return np.sort(np.argpartition(draws, capacity)[:capacity])


class Sampler:
    """Keeps the chosen rows of a stream.

    Args:
        rows: The rows chosen, ascending.
        embedding_dim: D.
        first_row: Row that the stream starts with.
    """

    def __init__(self, rows: Labels, embedding_dim: int, first_row: int = 0) -> None:
        self._chosen = rows
        self._row = first_row
        nothing = np.empty(0, np.int64)
        self._kept = [Sample(np.empty((0, embedding_dim), np.float32), nothing, nothing)]

    def add(self, embeddings_BD: Embeddings, labels_B: Labels) -> None:
        """Take what is chosen of the next rows of the stream."""
        first, last = np.searchsorted(self._chosen, [self._row, self._row + len(labels_B)])
        if last > first:
            rows = self._chosen[first:last]
            at = rows - self._row
            self._kept.append(Sample(embeddings_BD[at], labels_B[at], rows))
        self._row += len(labels_B)

    def sample(self) -> Sample:
        """Return what was kept so far."""
        self._kept = [Sample.joined(self._kept)]
        return self._kept[0]
