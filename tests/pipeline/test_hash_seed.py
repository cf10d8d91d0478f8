"""Every artifact has the same bytes for any order in which Python iterates over sets."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import SMALL

from arcloop.cli.main import main

RUN = ["run", *SMALL, "export=all", "logger=csv"]
WITH_TIMES = ("evaluation/report.html", "evaluation/manifest.json")


def hashes(folder):
    """Hash all files except those that are documented to contain times."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in names
        if not name.endswith(WITH_TIMES) and not Path(name).name.startswith(".")
    }


def test_no_artifact_depends_on_the_hash_seed(tmp_path, monkeypatch):
    """Fails, for example, if torch.jit no longer uses the `set` that `_sorted_constants` replaces.

    The first run is in this process, whose seed is random, because most of the time of the other
    one is the start of a process.
    """
    found = []
    for seed in ("random", "1"):
        folder = tmp_path / "work"  # checkpoints contain the path of the run
        folder.mkdir()
        monkeypatch.chdir(folder)
        if seed == "random":
            assert main(RUN) == 0
        else:
            subprocess.run(
                [sys.executable, "-m", "arcloop", *RUN], check=True, capture_output=True,
                env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip
        found.append(hashes(folder))
        folder.rename(tmp_path / seed)
    names = {Path(name).name for name in found[0]}
    assert names >= {
        "model.pt", "model.onnx", "model.pt2", "faiss_label.json", "faiss_index.bin", "best.ckpt",
        "last.ckpt", "metrics.csv", "metrics.json", "golden.npz", "config.yaml", "manifest.json",
    }  # fmt: skip
    assert found[0] == found[1]
