"""Names of classes and paths that look like markup or emoji codes are printed as they are."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from arcloop.api import Answer, Match
from arcloop.cli.main import main
from arcloop.cli.query import print_table
from arcloop.runtime.images import encode_png

NAMES = ["[bold]cat", ":apple:", "a[/b]", "[/]", "back\\"]
RUN = "runs/[/a]x:apple:"


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A folder with a run of such classes at such a path, and what the run printed."""
    folder = tmp_path_factory.mktemp("odd")
    rows = [("path", "label")]
    random = np.random.default_rng(0)
    for label, name in enumerate(NAMES):
        base = random.integers(0, 256, (4, 4, 1)).repeat(4, 0).repeat(4, 1)
        for number in range(24):
            pixels = np.clip(base + random.integers(-20, 20, base.shape), 0, 255)
            (folder / f"{label}-{number}.png").write_bytes(encode_png(pixels.astype(np.uint8)))
            rows.append((f"{label}-{number}.png", name))
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        assert main(["run", *DATA, f"run_dir='{RUN}'"]) == 0
    return folder, printed.getvalue()


DATA = [
    "data=csv", "data.file=list.csv", "data.image_size=16", "data.channels=1",
    "loader.batch_size=20", "trainer.max_epochs=1", "backbone.widths=[8,8]",
    "embedder.embedding_dim=16", "evaluate.gate.min_top1=0.0",
]  # fmt: skip


def test_the_summary_of_a_run(odd):
    assert RUN in odd[1]
    assert f"{RUN}/evaluation/report.html" in odd[1]


@pytest.mark.parametrize("label", range(len(NAMES)))
def test_query_prints_the_names_of_classes(odd, monkeypatch, capsys, label):
    monkeypatch.chdir(odd[0])
    monkeypatch.setenv("COLUMNS", "200")
    command = ["query", f"{label}-0.png", "--run", RUN, "-k", "1"]
    assert main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f": {answer['class_name']}  (similarity" in printed
    assert f"│ {answer['class_name']} " in printed
    assert f"{RUN}-thumbnails/gallery-" in printed


@pytest.mark.parametrize(
    ("similarity", "threshold", "shown"),
    [
        (0.99996, 0.99998, "0.99996 < 0.99998"),  # of saturated embeddings
        (1 - 2.0**-24, 1.0, "0.9999999 < 1.0000000"),
        (0.9, 0.5, "0.900 >= 0.500"),
        (0.5, 0.5, "0.500 >= 0.500"),
    ],
)
def test_query_shows_on_which_side_of_the_threshold_an_answer_is(
    capsys, similarity, threshold, shown
):
    nearest = Match(0, 0, "a", similarity)
    answer = Answer(
        0, "a", similarity, similarity < threshold, neighbours=(nearest,), threshold=threshold
    )
    print_table("x.png", answer, [])
    printed = capsys.readouterr().out
    assert f"(similarity {shown})" in printed
    assert f"{shown.split()[0]} │" in printed


def test_lineage_and_messages(odd, monkeypatch, capsys):
    monkeypatch.chdir(odd[0])
    assert main(["lineage", RUN]) == 0
    printed = capsys.readouterr().out
    assert f"ok run {RUN} " in printed
    assert f"overrides: {' '.join(DATA)}" in printed  # not cut off at the width of the console
    assert main(["query", "no[/b]:apple:.png", "--run", RUN]) == 1
    assert "no[/b]:apple:.png" in capsys.readouterr().err
    assert main(["prepare", *DATA[:4]]) == 0
    assert "store: stores/csv-" in capsys.readouterr().err


def test_leaderboard(odd, monkeypatch, capsys):
    monkeypatch.chdir(odd[0])
    sweep = "sweeps/[/a]x:apple:"
    quick = [f"hydra.sweep.dir='{sweep}'", "callbacks.evaluate=null"]
    assert main(["train", "-m", *DATA, "seed=1,2", *quick]) == 0
    capsys.readouterr()
    assert main(["leaderboard", sweep]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(sweep)
    assert f"written: {sweep}/leaderboard.html" in printed


def test_a_progress_bar():
    code = (
        "from arcloop.display.terminal import track\n"
        "with track('prepare [/b]:apple:', 3, '[/c]') as advance: advance(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": "120"})  # fmt: skip
    assert "prepare [/b]:apple:" in done.stderr
    assert "[/c]" in done.stderr
