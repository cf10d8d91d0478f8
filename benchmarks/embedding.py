"""Embedding the gallery to disk, compared with a bare loop over model.pt and tensors in memory."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from arcloop.config.schema import EmbedSettings
from arcloop.data import Store
from arcloop.retrieval.embed import embed_gallery
from benchmarks.measure import Comparison, alternate


def compare(
    store: Path, model: Path, *, batch_size: int = 512, rounds: int = 5, device: str = "cpu"
) -> Comparison:
    """Measure images per second over the gallery, after a warm-up that loads the model."""
    opened = Store.open(store)
    images_NHWC, _ = opened.gather("gallery", torch.arange(opened.rows("gallery")).numpy())
    images_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)
    scripted = torch.jit.load(str(model), map_location=device)
    settings = EmbedSettings(batch_size=batch_size, shard_rows=100_000, device=device)

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            embed_gallery(model, store, Path(folder) / "gallery", settings)
            return len(images_NCHW) / (time.perf_counter() - start)

    @torch.inference_mode()
    def bare() -> float:
        start = time.perf_counter()
        for images in images_NCHW.split(batch_size):
            scripted(images.to(device)).cpu()
        return len(images_NCHW) / (time.perf_counter() - start)

    return alternate(
        f"embed, batch {batch_size}, vs bare loop over model.pt",
        ours,
        bare,
        unit="images/s",
        target=0.95,
        rounds=rounds,
    )
