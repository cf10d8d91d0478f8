"""Style of all plots: grey axes and two signal colours, legible on light and dark pages."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#737b87"
RIGHT = "#3f84e5"
WRONG = "#e8702a"
# Distinguishable with all common colour vision deficiencies: Petroff, arXiv 2107.02270.
CLASSES = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip

WIDTH, HEIGHT, SQUARE, DPI = 5.4, 3.7, 5.0, 200  # inches; dots per inch
_NAME_LENGTH = 18

# Fonts with the scripts that matplotlib's own font lacks, on Linux, Windows and macOS.
_OTHER_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR",
    "Source Han Sans", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback",
    "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Hiragino Sans", "PingFang SC",
    "Apple SD Gothic Neo", "Arial Unicode MS",
)  # fmt: skip
_INSTALLED = {font.name for font in font_manager.fontManager.ttflist}
_FONTS = ["DejaVu Sans", *(name for name in _OTHER_FONTS if name in _INSTALLED)]

styled = mpl.rc_context({"font.family": _FONTS}, fname=Path(__file__).with_name("arcloop.mplstyle"))
"""Decorator that applies the style to a function that draws."""


def figure(
    columns: int = 1,
    *,
    width: float = WIDTH,
    height: float = HEIGHT,
    margins: tuple[float, float, float, float] = (0.68, 0.2, 0.5, 0.15),
) -> tuple[Figure, list[Axes]]:
    """Create a transparent figure with axes in one row.

    Args:
        columns: Number of axes.
        width: Width of the figure in inches.
        height: Height of the figure in inches.
        margins: Margins of each axes in inches: left, right, bottom, top.

    Returns:
        The figure and its axes.
    """
    left, right, bottom, top = margins
    drawn = Figure(figsize=(width, height), dpi=DPI)
    drawn.patch.set_alpha(0)
    size = (1 / columns - (left + right) / width, 1 - (bottom + top) / height)
    axes = [
        drawn.add_axes((column / columns + left / width, bottom / height, *size))
        for column in range(columns)
    ]
    for axis in axes:
        axis.patch.set_alpha(0)
    return drawn, axes


@styled
def encode_png(drawn: Figure) -> bytes:
    """Encode a figure as PNG. The same figure gives the same bytes."""
    buffer = io.BytesIO()
    drawn.savefig(
        buffer, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 4}
    )
    return buffer.getvalue()


@functools.cache
def _drawable_characters() -> frozenset[int]:
    paths = map(font_manager.findfont, _FONTS)
    return frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))


def drawable_names(names: Iterable[str]) -> list[str]:
    """Return the names, with "#<position>" for those that no installed font can draw.

    >>> drawable_names(["café", "\U0001fae8"])
    ['café', '#1']
    """
    drawable = _drawable_characters()
    return [
        name if drawable.issuperset(map(ord, name)) else f"#{position}"
        for position, name in enumerate(names)
    ]


def short_name(name: str, length: int = _NAME_LENGTH) -> str:
    """Shorten a name for an axis and escape "$", which starts a formula in matplotlib.

    Characters that no installed font can draw are replaced by "?".
    """
    drawable = _drawable_characters()
    short = name if len(name) <= length else name[: length - 1] + "…"
    short = "".join(letter if ord(letter) in drawable else "?" for letter in short)
    return short.replace("$", r"\$")


def name_margin(names: Sequence[str], length: int = _NAME_LENGTH) -> float:
    """Return the margin, in inches, for the longest of these names next to an axis."""
    return 0.45 + 0.072 * max(min(len(name), length) for name in names)
