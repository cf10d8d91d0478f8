"""The leaderboard of a sweep: on the terminal, as CSV, page, plots and Markdown."""

import csv
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from arcloop.cli.main import main
from arcloop.pipeline.leaderboard.page import markdown_page, render, rerun_command
from arcloop.pipeline.leaderboard.plots import draw
from arcloop.pipeline.leaderboard.ranking import Ranking

METRICS = {"top1": 0.9, "map_at_r": 0.7, "eer": 0.02, "num_queries": 70}


def grid(sweep, margins=(0.2, 0.3, 0.4), scales=(16, 32), seeds=(0, 1)):
    for margin in margins:
        for scale in scales:
            for seed in seeds:
                score = 0.9 - (margin - 0.3) ** 2 - abs(scale - 32) / 1000 + seed / 1000
                values = {"head.margin": margin, "head.scale": scale, "seed": seed}
                sweep.job(values, score, METRICS)


def rows(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_every_file_is_written_with_the_same_values(sweep, capsys):
    grid(sweep)
    sweep.job({"head.margin": 0.4, "head.scale": 32, "seed": 2}, None, failure="it <broke>\nmore")
    assert main(["leaderboard", str(sweep.path)]) == 0
    printed = capsys.readouterr().out
    assert "no result: head.margin-0.4_head.scale-32_seed-2: it <broke>" in printed
    settings = rows(sweep.path / "leaderboard.csv")
    assert len(settings) == 6
    best = settings[0]
    assert (best["head.margin"], best["head.scale"]) == ("0.3", "32")
    assert float(best["val_top1"]) == pytest.approx(0.9005)
    assert float(best["val_top1_ci95"]) == pytest.approx(12.706 * 0.0005, rel=1e-3)
    assert (best["top1"], best["num_queries"]) == ("0.9", "70.0")
    (partly,) = [row for row in settings if (row["jobs"], row["finished"]) == ("3", "2")]
    assert (partly["head.margin"], partly["head.scale"]) == ("0.4", "32")
    jobs = rows(sweep.path / "leaderboard-jobs.csv")
    assert len(jobs) == 13
    assert [row["failure"] for row in jobs if row["failure"]] == ["it <broke>\nmore"]
    page = (sweep.path / "leaderboard.html").read_text()
    assert "it &lt;broke&gt;" in page
    assert page.index("0.9005") < page.index("0.8905")
    assert "2 of 3" in page
    assert not re.search(r"(src|href)=\"(http|//)", page)
    assert page.count("data:image/png") == 3
    links = re.findall(r'href="([^"]+)"', page)
    assert all(link.endswith("/evaluation/report.html") for link in links)
    for name in ("settings", "heat_map", "parallel"):
        with Image.open(sweep.path / f"leaderboard-{name}.png") as picture:
            assert picture.width > 500


class Tags(HTMLParser):
    """Requires that tags are closed in the reverse order of their opening."""

    EMPTY = {"meta", "img", "br", "link", "input"}

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("count", [1, 3])
def test_the_page_is_well_formed(sweep, count):
    grid(sweep, scales=(16, 32)[: count or 1], margins=(0.2, 0.3, 0.4)[:count])
    sweep.job({"head.margin": 9, "head.scale": 1, "seed": 0}, None, failure="x")
    tags = Tags()
    tags.feed(render(Ranking.of(sweep.path))[sweep.path / "leaderboard.html"].decode())
    assert tags.open == []


def drawn(sweep):
    return set(draw(Ranking.of(sweep.path)))


def test_only_applicable_figures_are_drawn(sweep):
    sweep.job({"head.margin": 0.2}, 0.8)
    assert drawn(sweep) == set()
    sweep.job({"head.margin": 0.3}, 0.9)
    assert drawn(sweep) == {"settings", "curve"}
    sweep.job({"head.margin": 0.4, "head": "cosface"}, 0.9, METRICS)
    assert drawn(sweep) == {"settings", "parallel"}
    for scale in (8, 64.5, 16):
        sweep.job({"head.margin": scale / 100, "head.scale": scale}, 0.7)
    sweep.job({"head.margin": 0.1, "head.scale": 7}, None, failure="x")
    assert "parallel" in drawn(sweep)


def test_every_seed_is_a_dot(sweep):
    grid(sweep, scales=(32,), seeds=(0, 1, 2))
    figures = draw(Ranking.of(sweep.path))
    objectives = {round(0.9 - (margin - 0.3) ** 2 + seed / 1000, 6)
                  for margin in (0.2, 0.3, 0.4) for seed in (0, 1, 2)}  # fmt: skip
    for name, read in (("curve", "get_ydata"), ("settings", "get_xdata")):
        dots = [line for line in figures[name].axes[0].lines if line.get_markersize() == 3.5]
        assert {round(value, 6) for dot in dots for value in getattr(dot, read)()} == objectives


def test_heat_map_of_points_that_are_not_a_grid(sweep):
    for number in range(8):
        values = {"head.margin": 0.1 + number / 20, "head.scale": 2 ** (number % 5 + 2) + number}
        sweep.job(values, 0.9 - number / 100)
    assert drawn(sweep) == {"settings", "heat_map", "parallel"}


def test_an_outdated_figure_is_removed(sweep):
    stale = sweep.path / "leaderboard-heat_map.png"
    stale.touch()
    sweep.job({"head.margin": 0.2}, 0.8)
    assert main(["leaderboard", str(sweep.path)]) == 0
    assert not stale.exists()


def test_the_same_jobs_give_the_same_bytes(sweep):
    grid(sweep, margins=(0.2, 0.3), scales=(32,))
    assert render(Ranking.of(sweep.path)) == render(Ranking.of(sweep.path))


@pytest.mark.parametrize("name", ["head.margin-0.3", "head.margin=0.3"])
def test_an_interrupted_job_is_listed(sweep, capsys, name):
    """The second name is that of a sweep of an earlier version."""
    sweep.job({"head.margin": 0.2}, 0.8)
    half = sweep.path / name
    half.mkdir()
    (half / ".begun.json").write_text('{"identity": "x"}')
    (half / "config.yaml").write_text("monitor: val_top1\nhead: {margin: 0.3}\n")
    assert main(["leaderboard", str(sweep.path)]) == 0
    assert f"no result: {name}: interrupted" in capsys.readouterr().out
    unfinished = rows(sweep.path / "leaderboard.csv")[1]
    assert (unfinished["head.margin"], unfinished["finished"]) == ("0.3", "0")


def test_markdown_has_a_command_for_every_row(sweep, capsys, tmp_path):
    grid(sweep, margins=(0.2, 0.3), scales=(32,))
    page = tmp_path / "docs/results.md"
    assert main(["leaderboard", str(sweep.path), "--markdown", str(page)]) == 0
    lines = page.read_text().splitlines()
    assert any(
        line.startswith("| 1 | 0.3 | 2 | 0.9005 ± 0.0064 | 0.9000 ± 0.0000") for line in lines
    )
    assert (
        "arcloop train -m data=synthetic loader.batch_size=50 'head.margin=choice(0.3)'"
        f" 'head.scale=choice(32)' seed=0,1 hydra.sweep.dir={sweep.path}  # 1"
    ) in lines


def test_rerun_command_omits_launcher_and_sweep_overrides(sweep):
    values = {"head.margin": 0.2, "launcher.jobs": 4, "sweep": "optuna"}
    sweep.job(values, 0.8)
    ranking = Ranking.of(sweep.path)
    assert rerun_command(ranking, ranking.settings[0]) == (
        "arcloop train -m data=synthetic loader.batch_size=50 'head.margin=choice(0.2)'"
        f" hydra.sweep.dir={sweep.path}"
    )
    assert "| 1 | 1 | 0.8000 |" in markdown_page(ranking)


def broken_metrics(sweep):
    folder = sweep.job({"seed": 0}, 0.9, METRICS)
    (folder / "evaluation/metrics.json").write_text("{")


def broken_manifest(sweep):
    (sweep.job({"seed": 0}, 0.9) / "manifest.json").write_text("{")


WRONG = {
    "no such folder": (lambda sweep: sweep.path.rmdir(), "this folder does not exist"),
    "an empty folder": (lambda sweep: None, "contains no job of a sweep"),
    "a single run": (lambda sweep: sweep.job({"seed": 0}, 0.9).rename("run"), "a single run"),
    "metrics that cannot be read": (broken_metrics, "metrics.json cannot be read"),
    "a manifest that cannot be read": (broken_manifest, "manifest.json is not a manifest"),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_input_is_one_message(sweep, monkeypatch, tmp_path, capsys, case):
    monkeypatch.chdir(tmp_path)
    damage, message = WRONG[case]
    damage(sweep)
    folder = "run" if case == "a single run" else str(sweep.path)
    assert main(["leaderboard", folder]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "remedy:" in error
    assert not list(tmp_path.rglob("leaderboard*"))


def test_leaderboard_does_not_import_torch(sweep):
    grid(sweep, scales=(32,), seeds=(0,))
    code = (
        "import sys; from arcloop.cli.main import main;"
        f"assert main(['leaderboard', {str(sweep.path)!r}]) == 0;"
        "slow = {'torch', 'faiss', 'pytorch_lightning', 'scipy.stats', 'optuna'};"
        "assert not slow & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_trained_run_with_a_failed_job_is_a_failure(sweep):
    """`run -m` trained the run but failed to evaluate it."""
    folder = sweep.job({"seed": 0}, 0.9)
    recorded = json.loads((folder / "job.json").read_text())
    recorded["failure"] = {"what": "disk full", "retry": True, "exit_code": 1}
    (folder / "job.json").write_text(json.dumps(recorded))
    (job,) = Ranking.of(sweep.path).jobs
    assert (job.objective, job.failure) == (0.9, "disk full")
