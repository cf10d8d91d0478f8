"""Gallery, index, metrics and val are those of one process, whatever the number of processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from arcloop import artifacts


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    script = Path(__file__).with_name("shared_judging.py")
    result = subprocess.run(
        [sys.executable, script], cwd=folder, timeout=300, stderr=subprocess.PIPE, text=True
    )
    assert result.returncode == 0, result.stderr
    return folder


def outcome(folder, name):
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-?.json"))]


def contents(folder):
    """Every file but the page and what follows from it: the page tells times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
        and path.name != "report.html" and path != folder / "evaluation/manifest.json"
    }  # fmt: skip


@pytest.mark.parametrize("world", [2, 3])
def test_files_are_those_of_one_process(judged, world):
    one, several = contents(judged / "1"), contents(judged / str(world))
    assert one.keys() == several.keys()
    assert [name for name in one if one[name] != several[name]] == []
    assert len([name for name in one if name.startswith("gallery/embeddings")]) == 5
    assert "evaluation/metrics.json" in one
    assert not list(judged.rglob(".*.npy"))
    for kind in ("gallery", "index", "evaluation"):
        artifacts.load(judged / str(world) / kind, kind, trust=False)


@pytest.mark.parametrize("world", [2, 3])
def test_every_process_returns_the_same_metrics(judged, world):
    metrics = json.loads((judged / "1/evaluation/metrics.json").read_text())
    assert outcome(judged, f"judged-{world}") == [metrics] * world
    assert metrics["num_queries"] == 71
    assert 0 < metrics["top1"] < 1


def test_val_is_compared_exactly_however_its_rows_are_spread(judged):
    (one,) = outcome(judged, "val-1")
    assert one[0] == one[1]
    assert 0 < one[0] < 1
    assert outcome(judged, "val-2") == [one] * 2
    assert outcome(judged, "val-3") == [one] * 3


def test_the_failure_of_one_process_ends_all_with_its_message(judged):
    waiting, failed = outcome(judged, "fail")
    assert failed == "DataError: image 7 is torn"
    assert waiting.startswith("DataError: rank 1 failed: image 7 is torn")
    (waiting,) = outcome(judged, "fail_first")  # rank zero raised what is no error of ours
    assert "rank 0 failed: IndexError: list index out of range" in waiting


def test_a_process_that_is_gone_is_noticed(judged):
    (waiting,) = outcome(judged, "vanish")
    assert waiting.startswith("ResourceError: rank 0 cannot go on: another process")
    assert json.loads((judged / "codes.json").read_text())["vanish"] == [0, 9]
