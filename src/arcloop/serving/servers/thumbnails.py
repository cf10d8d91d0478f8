"""Small pictures of gallery rows, so that the page on this machine shows what an answer means.

They come from the run's store and are made when a server is started, not archived: an archive is
the same wherever the run is deployed from, and a gallery of faces is not published with the model.
They lie one after another in a single array, which is loaded without pickle.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from arcloop import artifacts
from arcloop.data import Store
from arcloop.display.terminal import say

_SIDE = 64
_QUALITY = 85
_BATCH = 1024


def write(run_dir: Path, most: int, file: Path) -> None:
    """Write the thumbnails of a run's gallery, or say why there are none.

    Args:
        run_dir: A finished run.
        most: Largest gallery that has thumbnails; they are held in memory by the server.
        file: thumbnails.npz.

    Raises:
        ArtifactError: The run's store is damaged.
    """
    rows = artifacts.read(run_dir / "index", "index").info["rows"]
    if rows > most:
        say(f"a page without pictures: {rows:,} gallery rows, deploy.thumbnails={most:,}")
        return
    folder = _find_store(run_dir)
    store = Store.open(folder) if folder else None
    if store is None or store.rows("gallery") != rows:
        say("a page without pictures: the store of the run's gallery is not at hand")
        return
    encoded = [
        _encode(image_HWC)
        for images_NHWC, _ in store.batches("gallery", _BATCH)
        for image_HWC in images_NHWC
    ]
    ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
    np.savez(file, ends=ends, encoded=np.frombuffer(b"".join(encoded), np.uint8))


def _find_store(run_dir: Path) -> Path | None:
    """Return the run's store, wherever the command is called: beside the run, or under here."""
    run = artifacts.read(run_dir, "run")
    named = run.config["store_dir"]
    stores = Path(named).parent if named else Path(run.config["stores_dir"])
    made_in = run_dir.resolve()  # less the path of the run as it was then
    for _ in Path(run.config["run_dir"]).parts:
        made_in = made_in.parent
    for folder in (stores, made_in / stores):
        if found := artifacts.find(folder, "store", run.parents["store"]):
            return found
    return None


def _encode(image_HWC: npt.NDArray[np.uint8]) -> bytes:
    """Grey as PNG, which is small and exact; colour as JPEG."""
    grey = image_HWC.shape[-1] == 1
    image = Image.fromarray(image_HWC[..., 0] if grey else image_HWC)
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, "PNG" if grey else "JPEG", quality=_QUALITY)
    return file.getvalue()
