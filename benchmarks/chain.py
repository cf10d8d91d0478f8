"""All steps on the classic MNIST example, compared with a script as tutorials write it.

The data are MNIST as 28x28 PNG files in class folders: the training file as 49,000 train, 10,000
gallery and 1,000 val, on which arcloop selects its checkpoint; the test file as 10,000 query. (No
image is in both train and gallery, because `validate` refuses that.) Both sides use the same
network with two convolutions, ArcFace with s = 32 and m = 0.5, SGD with a learning rate of 0.01,
and 2 epochs of batches of 64, in float32. A second row uses arcloop's default network, batch size,
learning rate and augmentation. arcloop is measured as the command `arcloop run`, including start-up
and report. The other side is benchmarks/peers/classic.py. They run in turn.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from PIL import Image

from arcloop.config.composition import compose_config
from arcloop.data import Store
from arcloop.pipeline import steps
from arcloop.runtime.images import encode_jpeg, encode_png
from benchmarks.measure import Comparison, Section, Size, in_process

TITLE = "All steps"
_STAGES = ("prepare", "validate", "train", "embed", "index", "evaluate")
_SAME = [
    "backbone._target_=benchmarks.peers.network.TwoConvolutions", "~backbone.widths",
    "~backbone.depth",
    "embedder.embedding_dim=128", "augmentation=none", "head.margin=0.5", "head.scale=32",
    "optimizer.lr=0.01", "optimizer.head_lr=0.01", "optimizer.weight_decay=0.0",
    "optimizer.head_weight_decay=0.0", "optimizer.factory.momentum=0.0",
    "optimizer.factory.nesterov=false", "scheduler=constant", "loader.batch_size=64",
]  # fmt: skip
_DATA = ["data=image_folder", "data.image_size=28", "data.channels=1", "embedder.mean=[0.1307]",
         "embedder.std=[0.3081]", "name=chain", "evaluate.gate.min_top1=0.0"]  # fmt: skip
_PHOTOS = 3000
_TUTORIAL = "tutorial script"
_WAYS = {"arcloop": _SAME, "arcloop, default job": []}


def measure(size: Size) -> Section:
    epochs = size.of(1, 2, 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = mnist_pngs(folder / "images", share=size.of(20, 1, 1))
        rounds: list[dict[str, Any]] = []
        for _ in range(size.of(1, 1, 2)):
            found = {
                way: _ours(images, folder, [*more, f"trainer.max_epochs={epochs}"])
                for way, more in _WAYS.items()
            }
            start = time.perf_counter()
            found[_TUTORIAL] = in_process(
                "benchmarks.peers.classic", str(images), str(folder / "peer"), str(epochs)
            )
            found[_TUTORIAL]["whole"] = (
                time.perf_counter() - start
            )  # including start-up, as in ours
            shutil.rmtree(folder / "peer")
            rounds.append(found)
        section = _section(rounds)
        _opencv(section, images, folder, size)
    return section


def mnist_pngs(folder: Path, *, share: int) -> Path:
    """Write the bundled MNIST as PNG files; with a share, one image in every `share`."""
    config = compose_config(["data=mnist", "data.val=20", "data.gallery=10"])
    steps.apply("prepare", config, {}, folder.with_name("store"))
    store = Store.open(folder.with_name("store"))
    for split in ("train", "val", "gallery", "query"):
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True)
    for source in ("train", "query"):
        images_NHWC, labels_N = store.gather(source, np.arange(0, store.rows(source), share))
        for row, (image, label) in enumerate(zip(images_NHWC, labels_N, strict=True)):
            split = source if source == "query" else _split(row)
            (folder / split / str(label) / f"{row:05d}.png").write_bytes(encode_png(image))
    return folder


def _split(row: int) -> str:
    """Of every 60 images of the training file, 10 are gallery, 1 is val and 49 are train."""
    return "gallery" if row % 6 == 0 else "val" if row % 60 == 1 else "train"


def _ours(images: Path, folder: Path, overrides: list[str]) -> dict[str, Any]:
    work = Path(tempfile.mkdtemp(dir=folder))
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "arcloop", "run", *_DATA, *overrides, f"data.root={images}"]
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=work, check=False, capture_output=True, text=True,
        env=_environment(root),
    )  # fmt: skip
    whole = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    run = work / "runs" / "chain"
    (store,) = (work / "stores").iterdir()
    places = (store, store / "validation", run, run / "gallery", run / "index", run / "evaluation")
    seconds = {
        stage: json.loads((place / ".timing.json").read_bytes())["seconds"]
        for stage, place in zip(_STAGES, places, strict=True)
    }
    metrics = json.loads((run / "evaluation" / "metrics.json").read_bytes())
    shutil.rmtree(work)
    return {"seconds": seconds, "whole": whole, "top1": metrics["top1"]}


def _environment(root: Path) -> dict[str, str]:
    paths = [str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _section(rounds: list[dict[str, Any]]) -> Section:
    ways = [*_WAYS, _TUTORIAL]
    rows = []
    for stage in (*_STAGES, "whole"):
        middle = {
            way: statistics.median(
                r[way]["whole"] if stage == "whole" else r[way]["seconds"][stage] for r in rounds
            )
            for way in ways
        }
        rows.append({"stage": "whole command" if stage == "whole" else stage,
                     **{f"{way}, s": seconds for way, seconds in middle.items()},
                     "tutorial / arcloop": middle[_TUTORIAL] / middle["arcloop"]})  # fmt: skip
    top1 = {way: statistics.median(r[way]["top1"] for r in rounds) for way in ways}
    rows.append({"stage": "query top-1", **{f"{way}, s": value for way, value in top1.items()},
                 "tutorial / arcloop": top1[_TUTORIAL] / top1["arcloop"]})  # fmt: skip
    comparisons = [
        Comparison(
            f"all steps, {way}",
            [1 / r[way]["whole"] for r in rounds],
            [1 / r[_TUTORIAL]["whole"] for r in rounds],
            "runs/s",
            8.0,
        )
        for way in _WAYS
    ]
    comparisons += [
        Comparison(
            f"query top-1, {way}",
            [r[way]["top1"] for r in rounds],
            [r[_TUTORIAL]["top1"] for r in rounds],
            "",
            1.0,
        )
        for way in _WAYS
    ]
    return Section(comparisons, {"seconds of each stage": rows})


def _opencv(section: Section, images: Path, folder: Path, size: Size) -> None:
    """Add a comparison of `prepare` with OpenCV on all cores, if OpenCV is installed."""
    if importlib.util.find_spec("cv2") is None:
        section.notes.append("`prepare` was not compared with OpenCV, which is not installed.")
        return
    photos = jpeg_photos(folder / "photos", count=size.of(_PHOTOS // 10, _PHOTOS, _PHOTOS))
    for name, root, pixels, channels in (
        ("prepare, against OpenCV on all cores", images, 28, 1),
        ("prepare 400x300 JPEG photos to 112x112, against OpenCV on all cores", photos, 112, 3),
    ):
        count = sum(1 for _ in root.glob("*/*/*.*"))
        kind = [f"data.image_size={pixels}", f"data.channels={channels}", f"data.root={root}"]
        config = compose_config(["data=image_folder", *kind])
        ours, theirs = [], []
        for number in range(size.of(2, 2, 4)):  # the first is not counted
            start = time.perf_counter()
            steps.apply("prepare", config, {}, folder / f"store-{number}")
            seconds = time.perf_counter() - start
            other = in_process(
                "benchmarks.peers.opencv_prepare",
                str(root), str(folder / "cv"), str(pixels), str(channels), str(joblib.cpu_count()),
            )  # fmt: skip
            shutil.rmtree(folder / f"store-{number}"), shutil.rmtree(folder / "cv")
            if number:
                ours.append(count / seconds)
                theirs.append(count / other)
        section.comparisons.append(Comparison(name, ours, theirs, "images/s", 1.0))


def jpeg_photos(folder: Path, *, count: int) -> Path:
    """Write JPEG files of smooth colours with noise like that of photos, each ten times."""
    generator = np.random.default_rng(0)
    encoded = b""
    for number in range(count):
        if number % 10 == 0:
            colours = Image.fromarray(generator.integers(0, 256, (20, 27, 3), np.uint8))
            smooth = np.asarray(colours.resize((400, 300), Image.Resampling.BICUBIC), np.int16)
            photo = smooth + generator.integers(-8, 9, (300, 400, 1), np.int16)
            encoded = encode_jpeg(photo.clip(0, 255).astype(np.uint8), 90)
        split = ("train", "train", "train", "val", "gallery", "query")[number % 6]
        target = folder / split / str(number // 6 % 10)
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{number:05d}.jpg").write_bytes(encoded)
    return folder
