"""Validation MAP@R over margin, scale and batch size, for several numbers of train classes.

The train classes are random subsets of those of the emoji set, see sets/README.md; val is the same
for all. Every training has about as many images as 10 epochs of all classes, in batches of 64
unless the batch size is compared. Each setting is a job of `arcloop train -m`, and finished jobs
are used again. Writes docs/margin-scale-classes.png, in which a dotted line is the scale of AdaCos,
√2·ln(C - 1) for C classes.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from arcloop.data.store import Store
from arcloop.pipeline.chains import find_store
from arcloop.pipeline.leaderboard.results import read_jobs

ROOT = Path(__file__).parents[1]
RUNS = Path("runs/margin_scale")
ARCLOOP = [sys.executable, "-m", "arcloop", "train"]
CLASSES = (40, 160, 637)
SCALES = (4, 8, 16, 32)
MARGINS = (0.1, 0.3, 0.5)
BATCHES = (16, 64, 256)
STEPS = 730  # of batches of 64 images
_RUN = ["callbacks=export_only", "threads=1", "data.image_size=32"]
_Results = dict[tuple[float, ...], float]


def main() -> None:
    """Run the sweeps and draw the plot."""
    whole = RUNS / "split"
    given = ["experiment=images", "data.root=sets/emoji", "trainer.max_epochs=1", *_RUN]
    subprocess.run([*ARCLOOP, *given, f"run_dir={whole}"], check=True)
    scales: dict[int, _Results] = {}
    batches: dict[int, _Results] = {}
    for classes in CLASSES:
        file, images = _write_list(whole, classes)
        grid = {"head_scale": SCALES, "head.margin": MARGINS}
        scales[classes] = _sweep(file, f"{classes}-scales", images, grid)
        sizes = {"loader.batch_size": BATCHES}
        batches[classes] = _sweep(file, f"{classes}-batches", images, sizes)
    _draw(scales, batches, ROOT / "docs/margin-scale-classes.png")


def _sweep(file: Path, name: str, images: int, grid: Mapping[str, Sequence[float]]) -> _Results:
    """Train on a list with all values of a grid; return val_map_at_r by the values."""
    epochs = round(STEPS / (images // 64))
    swept = [f"{key}={','.join(map(str, values))}" for key, values in grid.items()]
    subprocess.run([
        *ARCLOOP, "-m", "experiment=images", "data=csv", f"data.file={file}",
        "augmentation=drawing", f"trainer.max_epochs={epochs}",
        f"trainer.check_val_every_n_epoch={epochs}", *_RUN, *swept,
        f"hydra.sweep.dir={RUNS / name}",
    ], check=True)  # fmt: skip
    return {
        tuple(float(job.value(key) or 0) for key in grid): float(job.value_of("val_map_at_r") or 0)
        for job in read_jobs(RUNS / name)
    }


def _write_list(run: Path, classes: int) -> tuple[Path, int]:
    """List the images of random train classes, and of val and gallery.

    Returns:
        The list, and the number of its train images.
    """
    folder = RUNS / "images"
    store = Store.open(find_store(run))
    chosen = np.random.default_rng(0).permutation(store.num_train_classes)[:classes]
    rows = []
    for split in ("train", "val", "gallery"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for row, label in enumerate(store.labels(split)):
            path = folder / split / f"{row:05d}.png"
            if not path.exists():
                Image.fromarray(store.gather(split, np.array([row]))[0][0]).save(path)
            if split != "train" or label in chosen:
                rows.append([f"{split}/{path.name}", label, split])
    file = folder / f"{classes}.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerows([["path", "label", "split"], *rows])
    return file, sum(split == "train" for _, _, split in rows)


def _draw(scales: dict[int, _Results], batches: dict[int, _Results], file: Path) -> None:
    figure, axes = plt.subplots(1, len(scales) + 1, figsize=(13, 3.4), layout="constrained")
    for axis, (classes, values) in zip(axes, scales.items(), strict=False):
        for margin in MARGINS:
            found = [values.get((scale, margin)) for scale in SCALES]
            axis.plot(SCALES, found, "o-", label=f"margin {margin}")
        axis.axvline(np.sqrt(2) * np.log(classes - 1), color="grey", ls=":")
        axis.set(xscale="log", xlabel="head_scale", title=f"{classes} train classes")
        axis.set_xticks(SCALES, map(str, SCALES), minor=False)
        axis.minorticks_off()
    for classes, values in batches.items():
        axes[-1].plot(BATCHES, [values[size,] for size in BATCHES], "o-", label=f"{classes}")
    axes[-1].set(xscale="log", xlabel="loader.batch_size", title="batch size, same epochs")
    axes[-1].set_xticks(BATCHES, map(str, BATCHES), minor=False)
    axes[-1].minorticks_off()
    axes[0].set_ylabel("val_map_at_r")
    axes[0].legend()
    axes[-1].set_ylim(0, 1.4 * max(axes[-1].get_ylim()))
    axes[-1].legend(title="train classes", loc="upper center", ncols=3)
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
