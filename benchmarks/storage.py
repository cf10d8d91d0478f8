"""Stores of pixels compared with stores of JPEG: size, images/s of a loader, CPU time.

    python -m benchmarks.storage

The images are random crops of the two photographs that are part of scikit-learn. The whole store is
in the page cache. If it is not, a raw store has to read more bytes, by the ratio in the table.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.table import Table
from sklearn.datasets import load_sample_images

from arcloop.config.composition import build, compose_config
from arcloop.config.schema import LoaderSettings
from arcloop.data import Store, prepare
from arcloop.data.loading.datamodule import BatchDataset, BatchLoader
from arcloop.display.terminal import print_line
from benchmarks.machine import describe, in_words
from benchmarks.measure import console

_ROUNDS, _BATCH = 5, 256
_ENCODINGS = {"raw": ("raw", 95), "jpeg 95": ("jpeg", 95), "jpeg 85": ("jpeg", 85)}


def compare(sizes: dict[int, int]) -> None:
    """Print size and rates of each encoding, and their ratio to raw.

    Args:
        sizes: Side of the images, in pixels -> number of them.
    """
    table = Table(title=f"store and loader, batch {_BATCH}; {in_words(describe())}")
    for column in ("pixels", "encoding", "KB/image", "ratio", "0 workers/s", "ratio", "us of CPU",
                   "2 workers/s", "ratio"):  # fmt: skip
        table.add_column(column, justify="right")
    for side, number in sizes.items():
        with tempfile.TemporaryDirectory() as name:
            _cut(Path(name) / "pictures", side, number)
            found = {label: _prepare(Path(name), side, label) for label in _ENCODINGS}
            loaders = {
                (label, workers): _loader(Path(name) / label, workers)
                for label in _ENCODINGS
                for workers in (0, 2)
            }
            read = [{key: _read(loader) for key, loader in loaders.items()} for _ in range(_ROUNDS)]
        for label, size in found.items():
            row = [f"{side}", label, f"{size / 1000:.1f}", f"{found['raw'] / size:.1f}"]
            for workers in (0, 2):
                rates = [one[label, workers][0] for one in read]
                raw = [one["raw", workers][0] for one in read]
                ratio = statistics.median(a / b for a, b in zip(rates, raw, strict=True))
                row += [f"{statistics.median(rates):,.0f}", f"{ratio:.2f}"]
                if workers == 0:
                    row.append(f"{statistics.median(one[label, 0][1] for one in read) * 1e6:.0f}")
            table.add_row(*row)
    console.print(table)


def _cut(root: Path, side: int, number: int) -> None:
    random = np.random.default_rng(0)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    for label in "ab":
        (root / label).mkdir(parents=True)
    for row in range(number):
        photograph = photographs[row % 2]
        width = int(random.integers(side, min(photograph.size)))
        left, top = (int(random.integers(0, edge - width + 1)) for edge in photograph.size)
        cut = photograph.crop((left, top, left + width, top + width))
        cut.resize((side, side), Image.Resampling.BICUBIC).save(root / "ab"[row % 2] / f"{row}.bmp")


def _prepare(folder: Path, side: int, label: str) -> float:
    """Return the bytes per image of the store."""
    encoding, quality = _ENCODINGS[label]
    overrides = [
        "data=image_folder", f"data.root={folder / 'pictures'}", f"data.image_size={side}",
        "data.shard_rows=500", f"data.encoding={encoding}", f"data.jpeg_quality={quality}",
        "data.val=0.02", "data.gallery=0.02", "data.query=0.02",
    ]  # fmt: skip
    source = build(compose_config(overrides), "data")
    store = prepare(source, folder / label, workers=1)
    rows = sum(facts["rows"] for facts in store.info["splits"].values())
    return sum(entry["size"] for entry in store.files.values()) / rows


def _loader(store: Path, workers: int):
    settings = LoaderSettings(
        batch_size=_BATCH,
        eval_batch_size=_BATCH,
        num_workers=workers,
        prefetch_factor=2,
        on_device=False,
    )
    opened = Store.open(store)
    rows = np.random.default_rng(0).permutation(opened.rows("train"))
    batches = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
    return BatchLoader(BatchDataset(opened, "train"), batches, settings)


def _read(loader) -> tuple[float, float]:
    """Return images per second and CPU seconds per image, without the first batch."""
    rows, started, cpu = 0, time.perf_counter(), time.process_time()
    for images, _ in loader:
        if rows == 0:
            started, cpu = time.perf_counter(), time.process_time()
        rows += len(images)
    rows -= _BATCH
    return rows / (time.perf_counter() - started), (time.process_time() - cpu) / rows


if __name__ == "__main__":
    print_line("writing crops of photographs, then reading each store")
    compare({112: 3000, 224: 1500})
