"""Does whatever answers compute what the run computed? The golden batch, held against its answers.

The run kept a batch of images with the embeddings of its own, unscripted model. Their neighbours in
the index are the right answers; a server that gives others is not to be let near a user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import images, searcher

GOLDEN = "golden.npz"
_NEIGHBOURS = 5


def golden_image(file: Path) -> bytes:
    """Return the first image of golden.npz, encoded."""
    with np.load(file, allow_pickle=False) as stored:
        return images.encode_png(stored["images"][0])


class Golden:
    """The golden batch of a run or its archive, and the right answers to it.

    Args:
        file: golden.npz.
        index: The faiss index.
        tolerance: Largest difference of a similarity.

    Attributes:
        images_NHWC: The images, uint8.
        k: Neighbours to ask for.
    """

    def __init__(self, file: Path, index: Any, *, tolerance: float) -> None:
        with np.load(file, allow_pickle=False) as stored:
            self.images_NHWC, embeddings_ND = stored["images"], stored["embeddings"]
        self.k = min(_NEIGHBOURS, index.ntotal)
        self._similarities_NK, self._rows_NK = searcher.search(index, embeddings_ND, self.k)
        self._tolerance = tolerance

    def encoded(self) -> list[bytes]:
        """Return the images as PNG, which loses nothing."""
        return [images.encode_png(image_HWC) for image_HWC in self.images_NHWC]

    def fault(self, answers: Sequence[Mapping[str, Any]]) -> str | None:
        """Say how the answers, in the batch's order, differ from the right ones; None if not.

        Neighbours whose similarities are nearer to each other than the tolerance may change places.
        """
        if len(answers) != len(self._rows_NK):
            return f"{len(answers)} answers to {len(self._rows_NK)} golden images"
        for number, (answer, similarities_K, rows_K) in enumerate(
            zip(answers, self._similarities_NK, self._rows_NK, strict=True)
        ):
            right = {int(r): float(s) for r, s in zip(rows_K, similarities_K, strict=True)}
            right.pop(-1, None)  # an approximate index may find fewer than k
            found = {n["row"]: n["similarity"] for n in answer.get("neighbours", ())}
            if fault := self._difference(right, found):
                return f"golden image {number}: {fault}"
        return None

    def _difference(self, right: Mapping[int, float], found: Mapping[int, float]) -> str | None:
        if len(found) != len(right):
            return f"{len(found)} neighbours, not {len(right)}"
        furthest = min(right.values(), default=-1.0)
        for row, similarity in found.items():
            # A row that ties with the furthest may stand in for it.
            expected = right.get(row, furthest)
            if not abs(similarity - expected) <= self._tolerance:
                return f"row {row} with similarity {similarity:.6f}; expected {right}"
        return None
