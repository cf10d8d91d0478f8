"""What a leaderboard shows: tables in a given width, constant plots, states, and the DataFrame."""

import csv
import json
import os
import re
import socket
import subprocess
import sys

import pytest

import arcloop
from arcloop.cli.main import main
from arcloop.errors import ConfigError
from arcloop.pipeline.leaderboard.page import render
from arcloop.pipeline.leaderboard.plots import draw
from arcloop.pipeline.leaderboard.ranking import Ranking
from arcloop.pipeline.leaderboard.tables import display_order

METRICS = {"top1": 0.9, "recall_at_5": 0.95, "map_at_r": 0.7, "eer": 0.02}

ALL = ("--where", "state!=running")
"""Meets all jobs; with a condition, the plots are not drawn."""


def printed(sweep, capsys, monkeypatch, width, *options):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["leaderboard", str(sweep.path), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    return lines[
        1 : next(n for n, line in enumerate(lines) if line.startswith(("No", "≈", "best")))
    ]


@pytest.mark.parametrize("width", [50, 80, 200])
def test_a_narrow_terminal_shows_all_keys_and_whole_numbers(sweep, capsys, monkeypatch, width):
    lrs = ["1.2345678e-05", "0.00012345678", "0.1"]
    for place, lr in enumerate(lrs):
        for seed in (0, 1):
            values = {
                "head": "sub_center_arcface", "head.margin": 0.2 + place, "optimizer.lr": lr,
                "data.root": f"/collections/of/pictures/of/birds-{place}", "embedder.dim": 2**place,
                "loader.batch_size": 32 + place, "seed": seed,
            }  # fmt: skip
            sweep.job(values, 0.9 - place / 100 + seed / 1000, METRICS)
    lines = printed(sweep, capsys, monkeypatch, width, *ALL)
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    rows = [
        lines[1:][n : n + len(lines[1:]) // 3]
        for n in range(0, len(lines) - 1, len(lines[1:]) // 3)
    ]
    for place, (row, lr) in enumerate(zip(rows, ["1.235e-05", "0.0001235", "0.1"], strict=True)):
        words = re.findall(r"[^\s=]+", " ".join(row))
        for number in (f"{0.2 + place:.1f}", lr, str(2**place), str(32 + place), "2"):
            assert number in words
        assert f"birds-{place}"[-2:] in " ".join(row)
        assert f"{0.9005 - place / 100:.4f} ± 0.0064" in " ".join(" ".join(row).split())
    assert ("0.7000 ± 0.0000" in text) == (width == 200)


def test_rows_are_ordered_by_a_column_and_ranks_stay(sweep, capsys, monkeypatch):
    for margin, score, top1 in ((0.2, 0.8, 0.3), (0.3, 0.9, 0.1), (10, 0.7, 0.2)):
        sweep.job({"head.margin": margin}, score, {"top1": top1, "eer": top1})
    sweep.job({"head.margin": 10, "seed": 1}, 0.7, {"top1": 0.2, "eer": 0.2})
    ranking = Ranking.of(sweep.path)
    columns = ("margin", "head.margin", "val_top1", "top1", "eer", "seeds")
    orders = {c: [ranking.ranks[n] for n in display_order(ranking, c)] for c in columns}
    assert orders == {
        "margin": ["2", "1", "3"], "head.margin": ["2", "1", "3"], "val_top1": ["1", "2", "3"],
        "top1": ["2", "3", "1"], "eer": ["1", "3", "2"], "seeds": ["3", "1", "2"],
    }  # fmt: skip
    rows = printed(sweep, capsys, monkeypatch, 80, "--sort", "margin", *ALL)[1:]
    assert [row.split()[0] for row in rows] == ["2", "1", "3"]
    assert main(["leaderboard", str(sweep.path), "--sort", "x"]) == 2
    assert "columns: head.margin, seeds, val_top1, top1, eer" in capsys.readouterr().err


def test_conditions_print_some_jobs_and_write_nothing(sweep, capsys, monkeypatch):
    for margin in (0.2, 0.3, 0.4):
        sweep.job({"head.margin": margin}, margin)
    rows = printed(sweep, capsys, monkeypatch, 80, "--where", "head.margin<0.4")[1:]
    assert [row.split()[1] for row in rows] == ["0.3", "0.2"]
    assert not list(sweep.path.glob("leaderboard*"))
    assert not (sweep.path / "best.json").exists()


@pytest.mark.parametrize("spread", [0.0, 1e-9])
def test_axes_of_constant_values_have_readable_ticks(sweep, spread):
    for margin in (0.2, 0.3):
        for scale in (16, 32):
            score = 1.0 - spread * margin
            sweep.job({"head.margin": margin, "head.scale": scale}, score, {"top1": 1.0})
    figures = draw(Ranking.of(sweep.path))
    assert set(figures) == {"settings", "heat_map", "parallel"}
    axis, bar = figures["settings"].axes[0], figures["heat_map"].axes[1]
    for low, high in (axis.get_xlim(), bar.get_ylim()):
        assert low < 1.0 < high
        assert 0.001 < high - low < 0.1
    for figure in figures.values():
        figure.draw_without_rendering()
    for shown in (axis.xaxis, bar.yaxis):
        assert shown.get_offset_text().get_text() == ""
        assert len({tick.get_text() for tick in shown.get_ticklabels()}) > 2
    scores = [text.get_text() for text in figures["parallel"].axes[0].texts[-5:]]
    assert scores[2] == "1.0000"
    assert len(set(scores)) == 5


def unfinished(sweep, margin, holder):
    folder = sweep.path / f"head.margin-{margin}"
    folder.mkdir()
    overrides = ["data=synthetic", "loader.batch_size=50", f"head.margin={margin}"]
    begun = {"parts": [{"overrides": overrides}]}
    (folder / ".begun.json").write_text(json.dumps(begun))
    (folder / "config.yaml").write_text("monitor: val_top1\n")
    (sweep.path / f".head.margin-{margin}.holder").write_text(holder)


def test_pruned_and_running_jobs_are_shown_apart(sweep, capsys, monkeypatch):
    sweep.job({"head.margin": 0.2}, 0.9)
    sweep.job({"head.margin": 0.3}, None, pruned=(4, 0.25))
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    unfinished(sweep, 0.4, f"process {os.getpid()} on {socket.gethostname()}")
    unfinished(sweep, 0.5, f"process {int(ended.stdout)} on {socket.gethostname()}")
    unfinished(sweep, 0.6, "process 1 on another host")
    states = {job.overrides["head.margin"]: job.state for job in Ranking.of(sweep.path).jobs}
    assert states == {"0.2": "finished", "0.3": "pruned", "0.4": "running", "0.5": "interrupted",
                      "0.6": "running"}  # fmt: skip
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["leaderboard", str(sweep.path)]) == 0
    output = capsys.readouterr().out
    rows = output.partition("\nNo setting")[0].splitlines()[2:]
    assert [row.split()[:2] for row in rows] == [["1", "0.2"], ["0.5", "0"]]
    assert "running: 2 jobs\n  head.margin-0.4\n  head.margin-0.6\n" in output
    assert "pruned: 1 job\n  head.margin-0.3: epoch 4, val_top1 0.2500\n" in output
    page = render(Ranking.of(sweep.path))[sweep.path / "leaderboard.html"].decode()
    assert "1 pruned job" in page
    assert "2 running" in page


def test_load_sweep_has_typed_columns_which_are_those_of_the_csv(sweep):
    for margin, seed, top1 in ((0.2, 0, 0.5), (0.3, 1, 0.6)):
        values = {"head.margin": margin, "head": f"arc{seed}", "compile": seed == 1, "seed": seed}
        sweep.job(values, margin, {"top1": top1}, val={"val_eer": top1 / 10})
    values = {"head.margin": 1, "head": "arc", "compile": False, "seed": 2}
    failed = sweep.job(values, None, failure="x")
    frame = arcloop.load_sweep(sweep.path).set_index("seed").sort_index()
    assert frame.index.tolist() == [0, 1, 2]
    assert frame["head.margin"].tolist() == [0.2, 0.3, 1.0]
    assert frame["compile"].tolist() == [False, True, False]
    assert frame["compile"].dtype == bool
    assert frame["head"].tolist() == ["arc0", "arc1", "arc"]
    assert frame["state"].tolist() == ["finished", "finished", "failed"]
    assert frame["val_top1"].tolist()[:2] == [0.2, 0.3]
    assert frame["val_eer"].tolist()[:2] == [0.05, 0.06]
    assert frame["top1"].tolist()[:2] == [0.5, 0.6]
    assert frame["duration_s"].tolist() == [90.0] * 3
    assert frame.loc[2, "run_dir"] == str(failed)
    assert main(["leaderboard", str(sweep.path)]) == 0
    with open(sweep.path / "leaderboard-jobs.csv") as lines:
        assert next(csv.reader(lines)) == list(arcloop.load_sweep(str(sweep.path)).columns)


def test_load_sweep_without_pandas_is_one_error(sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="pandas is not installed") as caught:
        arcloop.load_sweep(sweep.path)
    assert "arcloop[sweeps]" in str(caught.value)


def test_the_package_imports_no_other_package():
    code = (
        "import sys; before = set(sys.modules); import arcloop; dir(arcloop);"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "assert new - sys.stdlib_module_names == {'arcloop'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
