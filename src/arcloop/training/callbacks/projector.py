"""Files that TensorBoard's embedding projector reads: vectors, class names, thumbnails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from arcloop.artifacts.atomic import write_bytes
from arcloop.runtime.images import encode_png

_THUMBNAIL = 48  # pixels of the longer side, at most
_SHEET = 8192  # pixels of a side: the largest picture that the projector takes
_CONFIG = """\
embeddings {{
  tensor_name: "gallery and query"
  tensor_path: "{folder}/tensors.tsv"
  metadata_path: "{folder}/metadata.tsv"
  sprite {{
    image_path: "{folder}/sprite.png"
    single_image_dim: {width}
    single_image_dim: {height}
  }}
}}
"""
CONFIG = "projector_config.pbtxt"
FOLDER = "projector"


def write_projector(
    log_dir: Path,
    embeddings_ND: npt.NDArray[np.float32],
    metadata: Sequence[tuple[str, str, int]],
    images_NHWC: npt.NDArray[np.uint8],
) -> None:
    """Write the projector's files into a folder of TensorBoard logs; the same bytes in every run.

    Args:
        log_dir: Where the event files are.
        embeddings_ND: Vectors of norm 1.
        metadata: (class name, split, row in it) of each.
        images_NHWC: uint8 images of them.
    """
    thumbnails = [_thumbnail(image) for image in images_NHWC]
    height, width = thumbnails[0].shape[:2]
    columns = math.ceil(math.sqrt(len(thumbnails)))
    assert columns * max(height, width) <= _SHEET
    sheet = np.zeros((columns * height, columns * width, thumbnails[0].shape[2]), np.uint8)
    for number, thumbnail in enumerate(thumbnails):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + height, left : left + width] = thumbnail
    folder = log_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(f"{value:.6g}" for value in row) for row in embeddings_ND.tolist()]
    write_bytes(folder / "tensors.tsv", _text(lines))
    described = [f"{_one_line(name)}\t{split}\t{row}" for name, split, row in metadata]
    write_bytes(folder / "metadata.tsv", _text(["class\tsplit\trow", *described]))
    write_bytes(folder / "sprite.png", encode_png(sheet))
    config = _CONFIG.format(folder=FOLDER, width=width, height=height)
    write_bytes(log_dir / CONFIG, config.encode())


def most_images(wanted: int) -> int:
    """Return how many of `wanted` images the projector can show thumbnails of."""
    return min(wanted, (_SHEET // _THUMBNAIL) ** 2)


def _thumbnail(pixels_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    channels = pixels_HWC.shape[2]
    picture = Image.fromarray(pixels_HWC[..., 0] if channels == 1 else pixels_HWC)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def _one_line(name: str) -> str:
    return " ".join(name.split()) or "-"


def _text(lines: Sequence[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()
