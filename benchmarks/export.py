"""Latency of one batch by the runtimes that a server can use, with frozen model.pt = 1.

All runtimes use one thread and are measured in turn: each round takes the fastest of several calls
of every runtime, and a ratio is the median over the rounds. The networks have random weights, on
which the latency does not depend. "max difference" is that of a coordinate of the embeddings.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arcloop.export import CompiledFormat, OnnxFormat, OnnxFp16Format, OnnxInt8Format
from arcloop.models import ConvNet, Embedder, IResNet
from arcloop.runtime.runtimes import CompiledModel, OnnxModel, compiled_for
from arcloop.runtime.searcher import Model, save_model
from benchmarks.measure import Section, Size

TITLE = "Exported formats"
_BATCHES = (1, 8, 64)
_SECONDS = 0.1  # of calls of one runtime in a round
_ONNX: dict[str, Any] = {"opset": 17, "max_abs_diff": 1.0}
_COMPACT = {**_ONNX, "max_top1_loss": 1.0, "max_recall_loss": 1.0}
_FORMATS = {
    "ONNX Runtime": OnnxFormat(**_ONNX),
    "ONNX Runtime, fp16 weights": OnnxFp16Format(**_COMPACT),
    "ONNX Runtime, int8": OnnxInt8Format(**_COMPACT, calibration_images=64),
    "AOTInductor": CompiledFormat(max_abs_diff=1.0),
}


def measure(size: Size) -> Section:
    torch.set_num_threads(1)
    rows = _measure_network("convnet, 28 x 28 x 1", _embedder(28, 1, 64), list(_FORMATS), size)
    if size is not Size.QUICK:
        rows += _measure_network(
            "iresnet18, 112 x 112 x 3", _embedder(112, 3, 512), list(_FORMATS)[:3], size
        )
    return Section([], {"latency of a batch": rows})


def _embedder(side: int, channels: int, dim: int) -> Embedder:
    torch.manual_seed(0)
    backbone: torch.nn.Module = (
        ConvNet(in_channels=1, widths=[16, 32, 64], depth=2)
        if channels == 1
        else IResNet(in_channels=3, layers=[2, 2, 2, 2], widths=[64, 128, 256, 512])
    )
    made = Embedder(backbone, image_shape=(side, side, channels), embedding_dim=dim, dropout=0.0,
                    mean=[0.5], std=[0.5])  # fmt: skip
    return made.eval()


def _measure_network(
    name: str, embedder: Embedder, formats: list[str], size: Size
) -> list[dict[str, Any]]:
    height, width, channels = embedder.image_shape
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (_BATCHES[-1], height, width, channels), dtype=np.uint8)
    facts = {"image_shape": embedder.image_shape, "embedding_dim": embedder.embedding_dim,
             "requires": compiled_for()}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt"
        save_model(torch.jit.script(embedder), file, **{k: facts[k] for k in list(facts)[:2]})
        models, sizes = {"model.pt": Model(file)}, {"model.pt": file.stat().st_size}
        for label in formats:
            file = Path(folder) / _FORMATS[label].file
            _FORMATS[label].write(embedder, file, images.transpose(0, 3, 1, 2).copy())
            is_onnx = isinstance(_FORMATS[label], OnnxFormat)
            models[label] = (
                OnnxModel(file, facts, "", 1) if is_onnx else CompiledModel(file, facts, "")
            )
            sizes[label] = file.stat().st_size
        expected = models["model.pt"].embed(images[:8])
        rows = []
        for batch in _BATCHES:
            taken = _latencies(models, images[:batch], size)
            for label, seconds in taken.items():
                ratios = [a / b for a, b in zip(seconds, taken["model.pt"], strict=True)]
                difference = np.abs(models[label].embed(images[:8]) - expected).max()
                rows.append({
                    "network": name, "batch": batch, "runtime": label,
                    "ms": 1000 * statistics.median(seconds),
                    "x model.pt": statistics.median(ratios),
                    "file, KiB": sizes[label] / 1024, "max difference": float(difference),
                })  # fmt: skip
    return rows


def _latencies(models: dict[str, Model], images: np.ndarray, size: Size) -> dict[str, list[float]]:
    """Return the shortest latency of each round, in seconds."""
    found: dict[str, list[float]] = {label: [] for label in models}
    for round_ in range(1 + size.of(1, 5, 11)):
        for label, model in models.items():
            shortest, end = float("inf"), time.perf_counter() + _SECONDS
            while time.perf_counter() < end or shortest == float("inf"):
                start = time.perf_counter()
                model.embed(images)
                shortest = min(shortest, time.perf_counter() - start)
            if round_:  # the first round is a warm-up
                found[label].append(shortest)
    return found
