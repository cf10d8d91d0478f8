"""Time until the command line answers, and from the command to the first training step.

The commands are compared with a bare Hydra app that has as many config groups; a target of 0.667
means at most 1.5 times its time. First step: `arcloop train` with an existing store, compared with
a process that only imports torch and pytorch_lightning.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from arcloop.config.files import bundled
from benchmarks.measure import Comparison, Section, Size, alternate

TITLE = "Start-up"
_APP = """
import hydra
@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(config):
    pass
main()
"""
_FIRST_STEP = """
import os, sys
from pytorch_lightning import callbacks
from arcloop.cli.main import main
from arcloop.training.module import EmbeddingModule
def done(self, *_):
    print("first step", flush=True)
    os._exit(0)
EmbeddingModule.on_train_batch_end = done
main(sys.argv[1:])
"""


def measure(size: Size) -> Section:
    rounds = size.of(1, 5, 7)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare = _bare_app(folder)
        arcloop = [sys.executable, "-m", "arcloop"]
        comparisons = [
            alternate(
                "arcloop " + " ".join(arguments),
                lambda arguments=arguments: _rate([*arcloop, *arguments]),
                lambda arguments=arguments: _rate([*bare, *(arguments[2:] and ["no.such=1"])]),
                unit="per second",
                target=1 / 1.5,
                rounds=rounds,
            )
            for arguments in (
                ["--help"],
                ["train", "--help"],
                ["train", "head=arcface", "head.margn=1"],
                ["train", "head=arcface", "+head.margn=1"],
                ["train", "head=arcface", "loader.batch_size=x"],
            )
        ]
        if size is not Size.QUICK:
            comparisons.append(_first_step(folder, rounds=size.of(0, 2, 3)))
    return Section(comparisons)


def _first_step(folder: Path, *, rounds: int) -> Comparison:
    job = ["data=synthetic", "overwrite=true", "loader.batch_size=64", "resume=false"]
    ready = [sys.executable, "-m", "arcloop", "validate", *job]
    subprocess.run(ready, cwd=folder, check=True, capture_output=True)
    imports = [sys.executable, "-c", "import torch, pytorch_lightning"]
    return alternate(
        "to the first training step, against `import torch, pytorch_lightning`",
        lambda: _rate([sys.executable, "-c", _FIRST_STEP, "train", *job], folder),
        lambda: _rate(imports, folder),
        unit="per second",
        target=None,
        rounds=rounds,
    )


def _bare_app(folder: Path) -> list[str]:
    groups = sorted(p.name for p in bundled("conf").iterdir() if p.is_dir())
    conf = folder / "conf"
    for group in groups:
        (conf / group).mkdir(parents=True)
        (conf / group / "a.yaml").write_text("x: 1\ny: 2\n")
    defaults = "\n".join(f"  - {group}: a" for group in groups)
    (conf / "config.yaml").write_text(f"defaults:\n{defaults}\n  - _self_\n")
    (folder / "app.py").write_text(_APP)
    return [sys.executable, str(folder / "app.py")]


def _rate(command: Sequence[str], folder: Path | None = None) -> float:
    start = time.perf_counter()
    where = folder or tempfile.gettempdir()
    subprocess.run(command, capture_output=True, check=False, cwd=where)
    return 1 / (time.perf_counter() - start)
