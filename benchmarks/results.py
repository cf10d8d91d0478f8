"""Compare heads over seeds, and with other libraries, on MNIST and sets of drawings: `[SET ...]`.

For each set of `SETS`, `arcloop train -m` trains `HEADS` with `SEEDS`, and the other libraries
train the same network on the same images, see peers/image_training.py. The speed is measured
afterwards, with all cores, and each library in turn. Finished runs are used again. The results are
written to docs/results/SET.md, with the command of each row.

ARCLOOP_PEERS names the Python interpreter of an environment with pytorch-metric-learning,
open-metric-learning and torchvision; without it, only the heads are compared.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from arcloop.artifacts.metrics import read_metrics
from arcloop.artifacts.timings import read_timing
from arcloop.data.store import Store
from arcloop.errors import GATE_NOT_PASSED
from arcloop.pipeline.chains import find_store
from arcloop.pipeline.leaderboard.comparison import Estimate
from arcloop.pipeline.leaderboard.page import markdown_page
from arcloop.pipeline.leaderboard.ranking import Ranking
from benchmarks.measure import in_process

SETS = {
    "mnist": ["experiment=mnist"],
    "emoji": ["experiment=images", "data.root=sets/emoji"],
    "icons": ["experiment=images", "data.root=sets/icons"],
}
_DRAWN = ["trainer.max_epochs=10", "threads=1"]
_SHORTER = {"mnist": ["trainer.max_epochs=2"], "emoji": _DRAWN, "icons": _DRAWN}
LIBRARIES = {"pml": "pytorch-metric-learning", "oml": "open-metric-learning"}
HEADS = "arcface,cosface,sub_center_arcface,adaface,softmax"
SEEDS = "0,1,2"
ROUNDS = 3
_COLUMNS = ("top1", "map_at_r")
_SPEED = {"train_s": "seconds", "images_per_second": "images/s"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and write the results of each set; without `arguments`, those of the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.results", description=__doc__)
    parser.add_argument("sets", metavar="SET", nargs="+", choices=SETS)
    parser.add_argument("--heads", default=HEADS)
    parser.add_argument("--seeds", default=SEEDS)
    parser.add_argument("--without-speed", action="store_true", help="for a machine in use")
    options = parser.parse_args(arguments)
    peers = os.environ.get("ARCLOOP_PEERS")
    for name in options.sets:
        sweep = Path("runs/results") / name
        overrides = sweep_overrides(name, options.heads, options.seeds, sweep)
        code = subprocess.run(
            [sys.executable, "-m", "arcloop", "train", "-m", *overrides]
        ).returncode
        if code not in (0, GATE_NOT_PASSED):
            sys.exit(code)
        ranking = Ranking.of(sweep)
        page = markdown_page(ranking).replace("# Results", f"# Results on {name}", 1)
        if peers and name != "mnist":
            page += "\n" + "\n".join(_compare(ranking, peers)) + "\n"
            if not options.without_speed:
                page += "\n" + "\n".join(_compare_speed(name, peers)) + "\n"
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
    return [*SETS[name], *_SHORTER.get(name, ()), "callbacks.tensorboard=null", *swept]


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
    yield from _table("seeds", rows, {column: column for column in _COLUMNS}, Estimate.of)


def _compare_speed(name: str, peers: str) -> Iterator[str]:
    """Train for 3 epochs with each library in turn, and yield lines of the table of durations."""
    rows: dict[str, list[Mapping[str, float]]] = {"arcloop": [], **{who: [] for who in LIBRARIES}}
    for number in range(ROUNDS):
        run = Path(f"runs/results/{name}-speed/{number}")
        if not read_timing(run):
            short = ["trainer.max_epochs=3", "callbacks=export_only", f"run_dir={run}"]
            command = [sys.executable, "-m", "arcloop", "train", *SETS[name], *short]
            subprocess.run(command, check=True)
        for who in LIBRARIES:
            rows[who].append(_of_peer(run, who, peers))
        rate, peer = read_timing(run)["per_second"], rows["pml"][-1]
        images = peer["train_s"] * peer["images_per_second"]
        rows["arcloop"].append({"train_s": images / rate, "images_per_second": rate})
    yield "## Speed of training"
    yield ""
    yield f"3 epochs without validation, in turn, on {os.cpu_count()} CPU cores: median, minimum"
    yield "and maximum. The other libraries decode the files in two processes."
    yield ""
    yield from _table("rounds", rows, _SPEED, _middle)


def _middle(values: Sequence[float]) -> str:
    """Describe values by their median, minimum and maximum."""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def _table(
    repeats: str,
    rows: Mapping[str, Sequence[Mapping[str, float]]],
    columns: Mapping[str, str],
    describe: Callable[[Sequence[float]], Any],
) -> Iterator[str]:
    """Yield the lines of a table of the libraries; `columns` maps keys of the rows to titles."""
    yield f"| library | {repeats} | " + " | ".join(columns.values()) + " |"
    yield "| --- |" + " ---: |" * (1 + len(columns))
    for who, found in rows.items():
        cells = [str(describe([float(row[key]) for row in found])) for key in columns]
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
