"""Mistakes: queries answered with the wrong class, and their image for TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb
from PIL import Image

from arcloop.display.plotting import RIGHT, WRONG, encode_png, figure, short_name, styled

ReadImage = Callable[[str, int], npt.NDArray[np.uint8]]
"""Split ("query" or "gallery") and row -> uint8 [H, W, C]."""

_ROWS, _NEIGHBOURS = 24, 5
_CELL, _GAP, _BORDER = 64, 6, 3  # pixels
_ROW_INCHES, _WIDTH_INCHES, _TEXT_INCHES = 0.72, 6.4, 2.1


@dataclass(frozen=True)
class Mistake:
    """A query answered with the wrong class.

    Attributes:
        query_row: Row in the query split.
        label: Class of the query.
        predicted: Class of the nearest gallery row that the index found.
        similarity: Cosine similarity to that row.
        neighbour_rows: Gallery rows that the index found, nearest first.
        neighbour_labels: Their classes.
        neighbour_similarities: Their cosines.
    """

    query_row: int
    label: int
    predicted: int
    similarity: float
    neighbour_rows: tuple[int, ...]
    neighbour_labels: tuple[int, ...]
    neighbour_similarities: tuple[float, ...]


@styled
def mistake_sheet(
    mistakes: Sequence[Mistake], classes: Sequence[str], image: ReadImage
) -> npt.NDArray[np.uint8]:
    """Draw one row per mistake: the query and its nearest gallery images.

    A blue frame marks gallery images of the query's class, an orange frame those of other classes.

    Args:
        mistakes: At least one; the first 24 are drawn.
        classes: Class names; a label is a position in the list.
        image: Reads one image of the query or gallery split.

    Returns:
        uint8 [H, W, 3].
    """
    mistakes = mistakes[:_ROWS]
    rows = [_row(mistake, image) for mistake in mistakes]
    drawn, (axis,) = figure(
        width=_WIDTH_INCHES,
        height=_ROW_INCHES * len(rows) + 0.1,
        margins=(_TEXT_INCHES, 0.05, 0.05, 0.05),
    )
    drawn.patch.set_alpha(1)
    axis.imshow(np.concatenate(rows), aspect="equal", interpolation="nearest")
    axis.axis("off")
    for number, mistake in enumerate(mistakes):
        axis.text(
            -0.02,
            1 - (number + 0.5) / len(mistakes),
            f"{short_name(classes[mistake.label])}\n"
            f"answered {short_name(classes[mistake.predicted])}, {mistake.similarity:.3f}",
            transform=axis.transAxes,
            ha="right",
            va="center",
        )
    with Image.open(io.BytesIO(encode_png(drawn))) as opened:
        return np.asarray(opened.convert("RGB"))


def _row(mistake: Mistake, image: ReadImage) -> npt.NDArray[np.uint8]:
    """Return the query and its neighbours next to each other on white, uint8 [H, W, 3]."""
    neighbours = list(zip(mistake.neighbour_rows, mistake.neighbour_labels, strict=True))
    cells = [_framed(image("query", mistake.query_row), None)]
    cells += [
        _framed(image("gallery", row), RIGHT if label == mistake.label else WRONG)
        for row, label in neighbours[:_NEIGHBOURS]
    ]
    sheet = np.full((_CELL + _GAP, (_NEIGHBOURS + 1) * (_CELL + _GAP), 3), 255, np.uint8)
    for number, cell in enumerate(cells):
        left = number * (_CELL + _GAP)
        sheet[:_CELL, left : left + _CELL] = cell
    return sheet


def _framed(pixels_HWC: npt.NDArray[np.uint8], colour: str | None) -> npt.NDArray[np.uint8]:
    """Resize an image to one cell and draw a frame around it; None: a white frame."""
    inside = _CELL - 2 * _BORDER
    picture = Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC)
    smooth = max(picture.size) > inside  # small images are enlarged without smoothing
    resampling = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    picture = picture.convert("RGB").resize((inside, inside), resampling)
    frame = [round(255 * part) for part in to_rgb(colour)] if colour else [255] * 3
    cell = np.full((_CELL, _CELL, 3), frame, np.uint8)
    cell[_BORDER:-_BORDER, _BORDER:-_BORDER] = np.asarray(picture)
    return cell
