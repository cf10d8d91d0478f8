"""A repeated run is equal, or its first difference is reported."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import torch

from arcloop.cli.main import main
from arcloop.pipeline.reproduce import first_difference

RUN = "runs/synthetic"


def test_an_equal_second_run_is_removed(work, capsys):
    """Its folder has a name that an override must quote, its index was rebuilt, and its version
    did not have one of the keys."""
    assert main(["index", f"run_dir={RUN}", "index=hnsw"]) == 0
    assert main(["evaluate", f"run_dir={RUN}"]) == 0
    manifest = work / RUN / "manifest.json"
    content = json.loads(manifest.read_bytes())
    del content["config"]["optimizer"]["layer_decay"]
    manifest.write_text(json.dumps(content))
    (work / RUN).rename("runs/a=1, [b]")
    assert main(["reproduce", "runs/a=1, [b]"]) == 0
    assert "equal" in capsys.readouterr().out
    assert not (work / "runs/a=1, [b]-reproduced").exists()


def test_a_different_second_run_is_kept(work, capsys):
    """The recorded config has another seed than the one that was used."""
    manifest = work / RUN / "manifest.json"
    content = json.loads(manifest.read_bytes())
    content["config"]["seed"] = 1
    manifest.write_text(json.dumps(content))
    assert main(["reproduce", RUN, "--output", "second"]) == 1
    assert "different: model.pt, tensor" in capsys.readouterr().out
    assert (work / "second/model.pt").is_file()
    assert main(["reproduce", RUN, "--output", "second"]) == 2
    assert "exists" in capsys.readouterr().err


def test_the_first_difference_is_reported(work):
    one, other = work / RUN, work / "other"

    def changed(change):
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(one, other)
        change()
        return first_difference(one, other)

    def weights():
        model = torch.jit.load(other / "model.pt")
        next(iter(model.state_dict().values())).add_(0.5)
        model.save(other / "model.pt")

    def rows():
        text = (other / "metrics.csv").read_text()
        (other / "metrics.csv").write_text(text[:-3] + "9\n")

    def embeddings():
        path = other / "gallery/embeddings-00000.npy"
        array = np.load(path)
        array[3, 2] += 0.25
        np.save(path, array)

    def metrics():
        path = other / "evaluation/metrics.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {"top1": 0.125}))

    assert changed(lambda: None) is None
    assert "model.pt, tensor" in changed(weights)
    assert "0.5" in changed(weights)
    assert "metrics.csv, step" in changed(rows)
    assert changed(embeddings) == "gallery/embeddings-00000.npy: max |difference| 0.25"
    assert "evaluation/metrics.json, top1" in changed(metrics)
    assert "0.125" in changed(metrics)


def test_the_first_difference_does_not_depend_on_the_hash_seed(work):
    other = work / "other"
    shutil.copytree(work / RUN, other)
    metrics = json.loads((other / "evaluation/metrics.json").read_bytes())
    changed = json.dumps(dict.fromkeys(metrics, -1))
    (other / "evaluation/metrics.json").write_text(changed)
    code = (
        "from pathlib import Path; from arcloop.pipeline.reproduce import first_difference;"
        f"print(first_difference(Path({RUN!r}), Path('other')))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in "123"
    }  # fmt: skip
    assert len(found) == 1
    assert f"evaluation/metrics.json, {min(metrics)}" in found.pop()
