"""Peak memory of each step for a number of synthetic 28x28 images and for ten times as many.

94% of the images are train, 5% gallery, 0.5% val and 0.5% query, so every split is ten times as
large. evaluate compares each query with each gallery row, at most 10,000 x 100,000 pairs. The index
itself, which must be in memory to be searched, is not counted. Training reads the store through
memory maps in random order: the pages of files, which the operating system can free at any time,
are not counted. The other memory differs by a few MiB between runs, so the median of three is used.
The order of an epoch takes 4 bytes per image.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Comparison, Section, Size, in_process, peak_mib

TITLE = "Memory"
_STEPS = ("prepare", "validate", "train", "embed", "index", "evaluate")
_OUTPUTS = ("store", "validation", "run", "gallery", "index", "evaluation")


def measure(size: Size) -> Section:
    sizes = size.of((4_000, 40_000), (20_000, 200_000), (200_000, 2_000_000))
    few, many = (_peaks(rows, trainings=size.of(1, 1, 3)) for rows in sizes)
    rows = [
        {"step": step, f"{sizes[0]:,} images, MiB": few[step],
         f"{sizes[1]:,} images, MiB": many[step],
         "growth": f"{many[step] / few[step] - 1:+.1%}"}
        for step in _STEPS
    ]  # fmt: skip
    comparisons = [
        Comparison(
            f"memory of {step}, few images / many", [1 / many[step]], [1 / few[step]], "1/MiB",
            1 / 1.05,
        )
        for step in _STEPS
    ]  # fmt: skip
    return Section(comparisons, {"peak resident MiB": rows})


def _peaks(rows: int, *, trainings: int) -> dict[str, float]:
    share = {"train": rows * 94 // 100, "val": rows // 200, "gallery": rows // 20,
             "query": rows // 200}  # fmt: skip
    data = ["data=synthetic", *(f"data.{split}={n}" for split, n in share.items()),
            "trainer.max_epochs=1", "+trainer.limit_train_batches=50", "callbacks=export_only",
            "loader.batch_size=512", "loader.eval_batch_size=256", "backbone.widths=[8,16,32]",
            "validation.min_images_per_class=1"]  # fmt: skip
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {role: str(folder / role) for role in ("store", "run", "gallery", "index")}
        for step, output in zip(_STEPS, _OUTPUTS, strict=True):
            call = json.dumps([step, data, paths, str(folder / output)])
            results = [in_process("benchmarks.memory", call)]
            while step == "train" and len(results) < trainings:
                shutil.rmtree(folder / output)
                results.append(in_process("benchmarks.memory", call))
            key = "anonymous" if step == "train" else "peak"
            found[step] = statistics.median(float(one[key]) for one in results)
            if step in ("index", "evaluate"):
                found[step] -= (folder / "index" / "faiss_index.bin").stat().st_size / 2**20
    return found


def _run() -> None:
    """Run one step in this process and print its peak memory."""
    import resource

    from arcloop.pipeline.steps import run_step

    name, overrides, inputs, output = json.loads(sys.argv[1])
    most = _Anonymous()
    run_step(name, overrides, {k: Path(v) for k, v in inputs.items()}, Path(output))
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    result = {"peak": max(peak_mib(), children), "anonymous": most.mib}
    print("\n" + json.dumps(result))


class _Anonymous:
    """Peak of the memory that is not mapped from files, sampled every few milliseconds."""

    def __init__(self) -> None:
        self.mib = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> Any:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            line = next(line for line in lines if line.startswith("RssAnon"))
            self.mib = max(self.mib, int(line.split()[1]) / 1024)
            time.sleep(0.005)


if __name__ == "__main__":
    _run()
