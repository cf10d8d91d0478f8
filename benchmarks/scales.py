"""Validation MAP@R over margin and scale for several numbers of train classes, and its plot.

The train classes are random subsets of those of the emoji set, see sets/README.md; val is the same.
Each setting is a run of `arcloop train -m`, and finished runs are used again. Writes
docs/margin-scale-classes.png, in which a dotted line is the scale of AdaCos, √2·ln(C - 1) for C
classes.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from arcloop.data.store import Store
from arcloop.pipeline.chains import find_store
from arcloop.pipeline.leaderboard.results import read_jobs

ROOT = Path(__file__).parents[1]
RUNS = Path("runs/scales")
CLASSES = (40, 160, 637)
SCALES = (4, 8, 16, 32, 64)
MARGINS = (0.1, 0.3, 0.5)
SET = ["data.root=sets/emoji", "augmentation=drawing"]
_RUN = ["callbacks.evaluate=null", "callbacks.build_index=null", "callbacks.tensorboard=null"]


def main() -> None:
    """Run the sweeps and draw the plot."""
    whole = RUNS / "split"
    arcloop = [sys.executable, "-m", "arcloop"]
    given = ["experiment=images", *SET, "trainer.max_epochs=1", *_RUN]
    subprocess.run([*arcloop, "train", *given, f"run_dir={whole}"], check=True)
    results = {}
    for classes in CLASSES:
        sweep = RUNS / f"{classes}-classes"
        subprocess.run([
            *arcloop, "train", "-m", "experiment=images", "data=csv", "data.on_duplicate=error",
            f"data.file={_write_list(whole, classes)}", "augmentation=drawing", *_RUN,
            "head_scale=" + ",".join(map(str, SCALES)),
            "head.margin=" + ",".join(map(str, MARGINS)), f"hydra.sweep.dir={sweep}",
        ], check=True)  # fmt: skip
        results[classes] = {
            (float(job.value("head_scale") or 0), float(job.value("head.margin") or 0)):
            job.value_of("val_map_at_r") for job in read_jobs(sweep)
        }  # fmt: skip
    _draw(results, ROOT / "docs/margin-scale-classes.png")


def _write_list(run: Path, classes: int) -> Path:
    """Write the images, and a list of those of random train classes, of val and of gallery."""
    folder = RUNS / "images"
    file = folder / f"{classes}.csv"
    if file.exists():
        return file
    from PIL import Image

    store = Store.open(find_store(run))
    chosen = np.random.default_rng(0).permutation(store.num_train_classes)[:classes]
    with_rows = []
    for split in ("train", "val", "gallery"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for row, label in enumerate(store.labels(split)):
            path = folder / split / f"{row:05d}.png"
            if not path.exists():
                Image.fromarray(store.gather(split, np.array([row]))[0][0]).save(path)
            if split != "train" or label in chosen:
                with_rows.append([f"{split}/{path.name}", label, split])
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerows([["path", "label", "split"], *with_rows])
    return file


def _draw(results: dict[int, dict[tuple[float, float], float | None]], file: Path) -> None:
    figure, axes = plt.subplots(1, len(results), figsize=(11, 3.4), layout="constrained")
    for axis, (classes, values) in zip(axes, results.items(), strict=True):
        for margin in MARGINS:
            axis.plot(SCALES, [values.get((scale, margin)) for scale in SCALES], "o-",
                      label=f"margin {margin}")  # fmt: skip
        axis.axvline(np.sqrt(2) * np.log(classes - 1), color="grey", ls=":")
        axis.set(xscale="log", xlabel="scale", title=f"{classes} train classes")
        axis.set_xticks(SCALES, map(str, SCALES), minor=False)
        axis.minorticks_off()
    axes[0].set_ylabel("val_map_at_r")
    axes[-1].legend()
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
