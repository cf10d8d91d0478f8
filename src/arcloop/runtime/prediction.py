"""The answer to a query: the predicted class of an image and its nearest neighbours."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Neighbour:
    """A gallery row and its cosine similarity to the query, in [-1, 1]."""

    row: int
    label: int
    class_name: str
    similarity: float


@dataclass(frozen=True)
class Prediction:
    """The predicted class of an image: the class of its nearest gallery row.

    Attributes:
        label: Label of the nearest neighbour.
        class_name: Name of that class.
        similarity: Cosine similarity to the nearest neighbour, in [-1, 1].
        unknown: Whether the similarity is below the calibrated threshold, so that the image
            probably belongs to no class of the gallery.
        neighbours: The k nearest gallery rows, nearest first.
        quality: Norm of the features before normalisation, for a model whose head makes it a
            measure of quality; None for other models.
    """

    label: int
    class_name: str
    similarity: float
    unknown: bool
    neighbours: tuple[Neighbour, ...]
    quality: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the prediction as plain JSON types, without `quality` if it is None."""
        return {name: value for name, value in asdict(self).items() if value is not None}
