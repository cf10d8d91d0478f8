"""`arcloop run` in unusual environments, as a process, on classes with unusual names."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arcloop import artifacts

CLASSES = sorted(["ölkäfer", "<script>alert(1)", "two\nlines", "n" * 250, "a, \"b\"; 'c'"])
RUN = [
    "run", "data=image_folder", "data.root=pictures", "data.image_size=16", "data.channels=1",
    "data.name=odd", "loader.batch_size=10", "trainer.max_epochs=1", "backbone.widths=[4,4]",
    "embedder.embedding_dim=8", "evaluate.gate.min_top1=null",
]  # fmt: skip
MINIMAL = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(artifacts.__file__).parents[2])}
ENVIRONMENTS = {
    "usual": ([], {"LC_ALL": "C.UTF-8"}),
    "C locale, no terminal, 20 columns, variables of another Slurm task, user without home": (
        ["unshare", "--user", "--map-user=12345", "--map-group=12345"],
        {"LC_ALL": "C", "COLUMNS": "20", "SLURM_JOB_ID": "7", "SLURM_PROCID": "3",
         "SLURM_LOCALID": "3", "SLURM_NNODES": "2"}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd") / "pictures"
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def run_in(pictures, tmp_path_factory):
    """A function: name of an environment -> the process that ended, and its folder."""
    ended = {}

    def run(name):
        if name not in ended:
            prefix, variables = ENVIRONMENTS[name]
            if prefix and subprocess.run([*prefix, "true"], capture_output=True).returncode:
                prefix = []  # user namespaces are not allowed here
            folder = tmp_path_factory.mktemp("run")
            (folder / "pictures").symlink_to(pictures)
            command = [*prefix, sys.executable, "-m", "arcloop", *RUN]
            process = subprocess.run(
                command, cwd=folder, env=MINIMAL | variables, capture_output=True, timeout=300
            )
            ended[name] = process, folder
        return ended[name]

    return run


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_run_does_not_depend_on_the_environment(run_in, name):
    process, folder = run_in(name)
    output, errors = process.stdout.decode(), process.stderr.decode()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    if "COLUMNS" in ENVIRONMENTS[name][1]:
        lines = output.splitlines()
        assert max(map(len, lines)) <= 20
        cells = [line.split("│")[1:3] for line in lines if line.count("│") == 3]
        labels, values = (
            "".join(cell.strip() for cell in column) for column in zip(*cells, strict=True)
        )
        assert "runs/odd/evaluation/report.html" in values
        assert "recall_at_1" in labels
        assert "recall_at_5" in labels
    assert "\x1b" not in output + errors, "escape sequences are for terminals"
    _, usual = run_in("usual")
    files = "metrics.csv", "model.pt", "gallery/embeddings-00000.npy", "evaluation/metrics.json"
    for file in files:
        assert (folder / "runs/odd" / file).read_bytes() == (usual / "runs/odd" / file).read_bytes()


def test_class_names_are_kept_and_escaped(run_in):
    process, folder = run_in("usual")
    assert process.returncode == 0, process.stderr.decode()
    (store,) = (folder / "stores").glob("odd-*")
    assert json.loads((store / "classes.json").read_bytes()) == CLASSES
    run = folder / "runs/odd"
    with open(run / "evaluation/confusion_matrix.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == [row[0] for row in rows] == CLASSES
    for page in (store / "validation/report.html", run / "evaluation/report.html"):
        text = page.read_text()
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(1)" in text
