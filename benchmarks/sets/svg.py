"""Draws SVG as PNG."""

from pathlib import Path


def write_png(svg: str, file: Path, *, side: int) -> None:
    """Draw an SVG and write it as a square PNG of `side` pixels, with transparency."""
    import resvg_py

    file.parent.mkdir(parents=True, exist_ok=True)
    content = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side)
    file.write_bytes(bytes(content))
