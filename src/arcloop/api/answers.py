"""Answers of a search: predictions of the runtime with the files of the gallery images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from arcloop.runtime.prediction import Neighbour, Prediction


@dataclass(frozen=True)
class Match(Neighbour):
    """A gallery image that is similar to the query.

    Attributes:
        row: Its row in the gallery.
        label: Label of its class, a position in `Run.classes`.
        class_name: Name of its class.
        similarity: Cosine similarity to the query, in [-1, 1].
        file: Path of its image, relative to the root of the data; None if the data have no files,
            or the store of the run was not found.
        metadata: Other columns of the list of images, e.g. of a CSV file; None without one.
    """

    file: str | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Answer(Prediction):
    """The class of an image, and the most similar images of the gallery.

    Attributes:
        label: Label of the nearest gallery image; -1 if the index found none.
        class_name: Name of its class.
        similarity: Cosine similarity to it, in [-1, 1].
        unknown: Whether the similarity is below `threshold`, so that the image probably belongs to
            no class of the gallery.
        neighbours: The k nearest gallery images, nearest first. An approximate index may find
            fewer.
        quality: Norm of the features before normalisation, for a model whose head makes it a
            measure of quality; None for other models.
        threshold: The calibrated similarity from which on an image is known.
    """

    neighbours: tuple[Match, ...]
    threshold: float

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as plain JSON types, without the values that are None."""
        neighbours = [_without_none(asdict(one)) for one in self.neighbours]
        return _without_none({**asdict(self), "neighbours": neighbours})


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
