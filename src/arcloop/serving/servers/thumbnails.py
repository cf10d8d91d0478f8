"""Thumbnails of the gallery images for the demo page of the FastAPI server.

They are made from the store of the run when a local server starts. Archives do not contain them,
because an archive must not depend on the machine that made it, and a gallery of faces must not be
published with the model. The file contains all encoded images in one array, which loads without
pickle.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from arcloop import artifacts
from arcloop.data import Store
from arcloop.display.terminal import print_line
from arcloop.errors import ArtifactError
from arcloop.pipeline.chains import find_store

_SIDE = 64
_QUALITY = 85
_BATCH = 1024


def write_thumbnails(run_dir: Path, max_rows: int, file: Path) -> None:
    """Write the thumbnails of a run's gallery, or print why they are not available.

    Args:
        run_dir: A finished run.
        max_rows: Largest gallery with thumbnails; the server keeps all thumbnails in memory.
        file: The thumbnails.npz to write.

    Raises:
        ArtifactError: The run's store is damaged.
    """
    rows = artifacts.read(run_dir / "index", "index").info["rows"]
    if rows > max_rows:
        print_line(
            f"no thumbnails on the page: {rows:,} gallery rows, deploy.thumbnails={max_rows:,}"
        )
        return
    try:
        store = Store.open(find_store(run_dir))
    except ArtifactError:
        store = None
    if store is None or store.rows("gallery") != rows:
        print_line("no thumbnails on the page: the store of the run's gallery was not found")
        return
    encoded = [
        _encode_thumbnail(image_HWC)
        for images_NHWC, _ in store.batches("gallery", _BATCH)
        for image_HWC in images_NHWC
    ]
    ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
    np.savez(file, ends=ends, encoded=np.frombuffer(b"".join(encoded), np.uint8))


def _encode_thumbnail(image_HWC: npt.NDArray[np.uint8]) -> bytes:
    """Encode a grey image as PNG, which is small and lossless, and a colour image as JPEG."""
    grey = image_HWC.shape[-1] == 1
    image = Image.fromarray(image_HWC[..., 0] if grey else image_HWC)
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, "PNG" if grey else "JPEG", quality=_QUALITY)
    return file.getvalue()
