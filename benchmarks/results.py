"""Compare heads over seeds, and with other libraries, on MNIST and sets of drawings: `[SET ...]`.

For each set of `SETS`, `arcloop train -m` trains `HEADS` with `SEEDS`, and the other libraries
train the same network on the same images, see peers/image_training.py. Finished runs are used
again. The results are written to docs/results/SET.md, with the command of each row.

ARCLOOP_PEERS names the Python interpreter of an environment with pytorch-metric-learning,
open-metric-learning and torchvision; without it, only the heads are compared.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from arcloop.artifacts.metrics import read_metrics
from arcloop.data.store import Store
from arcloop.pipeline.chains import find_store
from arcloop.pipeline.leaderboard.comparison import Estimate
from arcloop.pipeline.leaderboard.page import markdown_page
from arcloop.pipeline.leaderboard.ranking import Ranking
from benchmarks.measure import in_process

SETS = {
    "mnist": ["experiment=mnist", "trainer.max_epochs=2"],
    "emoji": ["experiment=images", "data.root=sets/emoji", "trainer.max_epochs=10", "threads=1"],
    "icons": ["experiment=images", "data.root=sets/icons", "trainer.max_epochs=10", "threads=1"],
}
LIBRARIES = {"pml": "pytorch-metric-learning", "oml": "open-metric-learning"}
HEADS = "arcface,cosface,sub_center_arcface,adaface,softmax"
SEEDS = "0,1,2"
_COLUMNS = ("top1", "map_at_r")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and write the results of each set; without `arguments`, those of the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.results", description=__doc__)
    parser.add_argument("sets", metavar="SET", nargs="+", choices=SETS)
    parser.add_argument("--heads", default=HEADS)
    parser.add_argument("--seeds", default=SEEDS)
    options = parser.parse_args(arguments)
    peers = os.environ.get("ARCLOOP_PEERS")
    for name in options.sets:
        sweep = Path("runs/results") / name
        overrides = sweep_overrides(name, options.heads, options.seeds, sweep)
        subprocess.run([sys.executable, "-m", "arcloop", "train", "-m", *overrides], check=True)
        ranking = Ranking.of(sweep)
        page = markdown_page(ranking).replace("# Results", f"# Results on {name}", 1)
        if peers and name != "mnist":
            page += "\n" + "\n".join(_compare(ranking, peers)) + "\n"
        file = Path("docs/results") / f"{name}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page)
        print(f"written: {file}")


def sweep_overrides(name: str, heads: str, seeds: str, sweep: Path) -> list[str]:
    """Return the overrides of the sweep over heads and seeds on a set.

    Args:
        name: A name in `SETS`.
        heads: Choices of the config group `head`, separated by commas.
        seeds: Numbers, separated by commas.
        sweep: Folder of the sweep.
    """
    swept = [f"head={heads}", f"seed={seeds}", f"hydra.sweep.dir={sweep}"]
    return [*SETS[name], "callbacks.tensorboard=null", *swept]


def _compare(ranking: Ranking, peers: str) -> Iterator[str]:
    """Yield lines of the table of arcloop's ArcFace and that of the other libraries."""
    jobs = [
        job
        for setting in ranking.settings
        for job in setting.jobs
        if job.value("head") in (None, "arcface")
    ]
    rows: dict[str, list[Mapping[str, float]]] = {"arcloop": [], **{who: [] for who in LIBRARIES}}
    for job in jobs:
        rows["arcloop"].append(read_metrics(job.folder / "evaluation"))
        for who in LIBRARIES:
            rows[who].append(_of_peer(job.folder, who, peers))
    yield "## Against other libraries"
    yield ""
    yield "ArcFace with the same network, images, split, augmentation, epochs, margin and scale."
    yield ""
    yield "| library | seeds | " + " | ".join(_COLUMNS) + " |"
    yield "| --- |" + " ---: |" * (1 + len(_COLUMNS))
    for who, found in rows.items():
        cells = [str(Estimate.of([float(row[column]) for row in found])) for column in _COLUMNS]
        yield f"| {LIBRARIES.get(who, who)} | {len(found)} | " + " | ".join(cells) + " |"


def _of_peer(folder: Path, who: str, peers: str) -> dict[str, float]:
    """Train with another library as in the run of a folder, or read an earlier result."""
    kept = folder / f"{who}.json"
    if not kept.exists():
        config: Any = OmegaConf.load(folder / "config.yaml")
        files = _write_images(Store.open(find_store(folder)), folder.parent / "images")
        spec = {
            "library": who, "files": str(files), "seed": config.seed,
            "threads": None if config.threads == "auto" else config.threads, "workers": 2,
            "image_size": config.data.image_size, "widths": list(config.backbone.widths),
            "embedding_dim": config.embedder.embedding_dim, "epochs": config.trainer.max_epochs,
            "batch_size": config.loader.batch_size, "lr": config.optimizer.lr,
            "weight_decay": config.optimizer.weight_decay, "margin": config.head.margin,
            "head_scale": config.head_scale, "shift": config.augmentation.shift,
            "scale": config.augmentation.scale,
        }  # fmt: skip
        result = in_process("benchmarks.peers.image_training", json.dumps(spec), python=peers)
        kept.write_text(json.dumps(result))
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def _write_images(store: Store, folder: Path) -> Path:
    """Write the images of a store as PNG files, with a list of them in the format of OML."""
    files = folder / "files.csv"
    if files.exists():
        return files
    rows = []
    for split, name in (("train", "train"), ("gallery", "validation")):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for row, label in enumerate(store.labels(split)):
            path = (folder / split / f"{row:05d}.png").resolve()
            Image.fromarray(store.gather(split, np.array([row]))[0][0]).save(path)
            rows.append([label, path, name, *([name == "validation"] * 2)])
    with files.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["label", "path", "split", "is_query", "is_gallery"])
        writer.writerows(rows)
    return files


if __name__ == "__main__":
    main()
