"""Sources small enough to write out by hand."""

import gzip
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arcloop.config.schema import ValidationSettings
from arcloop.data import CsvSource, IdxSource, ImageFolderSource, SyntheticSource

RAW = {"encoding": "raw", "jpeg_quality": 95}


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write an IDX file of uint8, gzip if the name says so."""
    content = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape)
    content += values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_idx_set(
    root: Path, train: int, test: int, *, classes: int = 4, size: tuple[int, int] = (5, 3), end: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write four files of random images; return images [N, H, W] and labels [N] by prefix."""
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    made = {}
    for part, rows in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (rows, *size), dtype=np.uint8)
        labels = rng.permutation(np.arange(rows, dtype=np.uint8) % classes)
        write_idx(root / f"{part}-images-idx3-ubyte{end}", images)
        write_idx(root / f"{part}-labels-idx1-ubyte{end}", labels)
        made[part] = images, labels
    return made


def idx_source(root: Path, **changed: object) -> IdxSource:
    settings = {"name": "idx", "shard_rows": 7, **RAW, "split": "stratified", "val": 12,
                "gallery": 0.25, "val_classes": 2, "test_classes": 2, "split_seed": 0}  # fmt: skip
    return IdxSource(root=str(root), **(settings | changed))


def folder_source(root: Path, **changed: object) -> ImageFolderSource:
    settings = {
        "name": "pictures", "shard_rows": 7, **RAW, "image_size": [6, 4], "channels": 3,
        "max_value": 65535, "background": None, "on_duplicate": "error", "resize": "stretch",
        "split": "stratified", "val": 0.2, "gallery": 0.2, "query": 0.2,
        "val_classes": 2, "test_classes": 2, "split_seed": 0, "min_images": 0, "group": None,
        "on_bad_image": "fail",
    }  # fmt: skip
    return ImageFolderSource(root=str(root), **(settings | changed))


def csv_source(file: Path, **changed: object) -> CsvSource:
    settings = {
        "name": "listed", "shard_rows": 7, **RAW, "image_size": [6, 4], "channels": 3,
        "max_value": 65535, "background": None, "on_duplicate": "error", "resize": "stretch",
        "root": None,
        "delimiter": ",", "split": "stratified", "val": 0.2, "gallery": 0.2, "query": 0.2,
        "val_classes": 2, "test_classes": 2, "split_seed": 0, "min_images": 0,
        "on_bad_image": "fail",
    }  # fmt: skip
    return CsvSource(file=str(file), **(settings | changed))


def synthetic_source(**changed: object) -> SyntheticSource:
    settings = {
        "name": "synthetic", "shard_rows": 16, **RAW, "num_classes": 3, "image_size": 8,
        "channels": 1, "train": 50, "val": 20, "gallery": 20, "query": 20, "split": "stratified",
        "val_classes": 2, "test_classes": 2, "noise": 0.3, "seed": 1,
    }  # fmt: skip
    return SyntheticSource(**(settings | changed))


def write_pictures(folder: Path, number: int, *, seed: int = 0) -> None:
    """Write PNG files of one colour each, none twice."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, number])
    for row in range(number):
        image = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{row:03d}.png")


def write_list(root: Path, pattern: str = "*/*.png", **columns: Callable[[Path], object]) -> Path:
    """List the pictures in a CSV file; the label is the folder, other columns are computed."""
    cell_of = {"path": lambda p: p.relative_to(root), "label": lambda p: p.parent.name, **columns}
    files = sorted(root.glob(pattern))
    rows = [",".join(str(cell(file)) for cell in cell_of.values()) for file in files]
    (root / "list.csv").write_text("\n".join([",".join(cell_of), *rows]))
    return root / "list.csv"


@pytest.fixture
def settings() -> ValidationSettings:
    return ValidationSettings(
        min_images_per_class=2,
        min_std=1.0,
        min_brightest=64,
        near_duplicate_bits=6,
        max_empty_fraction=0.1,
        max_imbalance=5.0,
        max_listed=9,
    )


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three classes, 10, 15 and 20 pictures."""
    for seed, (name, number) in enumerate({"ant": 10, "bee": 15, "ölkäfer": 20}.items()):
        write_pictures(tmp_path / "pictures" / name, number, seed=seed)
    return tmp_path / "pictures"


PEAK = """
import sys
from pathlib import Path
from arcloop.config.schema import ValidationSettings
from arcloop.data import Store, SyntheticSource, prepare, validate

settings = ValidationSettings(
    min_images_per_class=2, min_std=1.0, min_brightest=64, max_empty_fraction=0.1,
    near_duplicate_bits=6, max_imbalance=5.0, max_listed=9,
)
for number, source in enumerate([{sources}]):
    path = Path(sys.argv[1], str(number))
    prepare(source, path)
    validate(path, path / "validation", settings)
    for split in ("train", "query"):
        for images, labels in Store.open(path).batches(split, 100):
            pass
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def peaks_of_memory(folder: Path, *sources: SyntheticSource) -> list[int]:
    """Prepare, validate and read stores in one process; return its peak after each, in KiB."""
    script = PEAK.format(sources=", ".join(map(repr, sources)))
    printed = subprocess.check_output([sys.executable, "-c", script, folder], text=True)
    return [int(line) for line in printed.split()]
