"""The golden batch: images with reference answers, to check that a server computes the same.

A run stores a batch of images and the embeddings that the eager model computed for them. The
nearest neighbours of these embeddings in the index are the reference answers. A server whose
answers differ must not receive requests from users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import images, searcher
from .equal_rows import EqualRows

GOLDEN = "golden.npz"
_NEIGHBOURS = 5


class GoldenBatch:
    """The golden batch of a run or of its archive, with the reference answers.

    Args:
        file: golden.npz.
        index: The faiss index.
        tolerance: Largest allowed absolute difference of a cosine similarity.
        equal_rows: Rows with equal embeddings, of which an approximate index may find only some.

    Attributes:
        images_NHWC: The images, uint8.
        k: Number of neighbours to request.
    """

    def __init__(
        self, file: Path, index: Any, *, tolerance: float, equal_rows: EqualRows | None = None
    ) -> None:
        with np.load(file, allow_pickle=False) as stored:
            self.images_NHWC, embeddings_ND = stored["images"], stored["embeddings"]
        self.k = min(_NEIGHBOURS, index.ntotal)
        self._similarities_NK, self._rows_NK = searcher.search(index, embeddings_ND, self.k)
        if equal_rows is not None:
            self._rows_NK = equal_rows.prefer_lowest(self._rows_NK)
        self._tolerance = tolerance

    def encoded_images(self) -> list[bytes]:
        """Return the images as PNG, which is lossless."""
        return [images.encode_png(image_HWC) for image_HWC in self.images_NHWC]

    def find_mismatch(self, answers: Sequence[Mapping[str, Any]]) -> str | None:
        """Compare answers with the reference answers.

        Neighbours whose similarities differ by less than the tolerance may swap places.

        Args:
            answers: JSON answers to the images, in the order of the batch.

        Returns:
            A description of the first difference, or None if all answers agree.
        """
        if len(answers) != len(self._rows_NK):
            return f"{len(answers)} answers to {len(self._rows_NK)} golden images"
        for number, (answer, similarities_K, rows_K) in enumerate(
            zip(answers, self._similarities_NK, self._rows_NK, strict=True)
        ):
            expected = {int(r): float(s) for r, s in zip(rows_K, similarities_K, strict=True)}
            expected.pop(-1, None)  # an approximate index may find fewer than k
            found = {n["row"]: n["similarity"] for n in answer.get("neighbours", ())}
            if len(found) != len(expected):
                return f"golden image {number}: {len(found)} neighbours, not {len(expected)}"
            lowest = min(expected.values(), default=-1.0)
            for row, similarity in found.items():
                # A row that ties with the last neighbour may appear in its place.
                if not abs(similarity - expected.get(row, lowest)) <= self._tolerance:
                    wrong = f"row {row} with similarity {similarity:.6f}"
                    return f"golden image {number}: {wrong}; expected {expected}"
        return None
