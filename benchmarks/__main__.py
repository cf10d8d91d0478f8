"""`python -m benchmarks`: every comparison, one after another. Nothing else should be running."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks import embedding, memory, startup, training, whole_run
from benchmarks.measure import show


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = whole_run.measure(folder)
        (store,) = (folder / "stores").iterdir()
        show(
            [
                training.compare(store, []),
                training.compare(store, ["trainer.precision=bf16-mixed"]),
                embedding.compare(store, run / "model.pt"),
                *startup.compare(),
            ]
        )
    whole_run.same_bytes_twice()
    memory.compare()


main()
