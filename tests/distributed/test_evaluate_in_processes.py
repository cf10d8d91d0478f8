"""Gallery, index, metrics and the val metric do not depend on the number of processes."""

import json

import numpy as np
import pytest
from tests import forks
from tests.distributed import evaluate_in_processes

from arcloop import artifacts
from arcloop.artifacts.metrics import read_metrics


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    forks.run(evaluate_in_processes.main, folder)
    return folder


def outcome(folder, name):
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-?.json"))]


def contents(folder):
    """Files of index and evaluation except the report, which contains timings, and manifests."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for kind in ("index", "evaluation")
        for path in sorted((folder / kind).iterdir())
        if not path.name.startswith(".") and path.name not in ("report.html", "manifest.json")
    }


def gallery_rows(folder, stem):
    files = sorted((folder / "gallery").glob(f"{stem}-*.npy"))
    rows = [np.load(file) for file in files]
    assert [len(row) for row in rows if len(row) > 20] == []
    return np.concatenate(rows)


@pytest.mark.parametrize("world", [2, 3])
def test_results_equal_those_of_one_process(evaluated, world):
    one, several = contents(evaluated / "1"), contents(evaluated / str(world))
    assert one.keys() == several.keys()
    assert [name for name in one if one[name] != several[name]] == []
    for stem in ("embeddings", "labels"):
        rows = gallery_rows(evaluated / "1", stem)
        assert len(rows) == 97
        assert np.array_equal(gallery_rows(evaluated / str(world), stem), rows)
    assert len(list((evaluated / "1/gallery").glob("embeddings-*.npy"))) == 5
    assert {"evaluation/metrics.json", "evaluation/queries.npz", "evaluation/versus.json"} < set(
        one
    )
    for kind in ("gallery", "index", "evaluation"):
        artifacts.load(evaluated / str(world) / kind, kind, trust=False)


@pytest.mark.parametrize("world", [2, 3])
def test_every_process_returns_the_same_metrics(evaluated, world):
    metrics = read_metrics(evaluated / "1/evaluation")
    assert outcome(evaluated, f"evaluated-{world}") == [metrics] * world
    assert metrics["num_queries"] == 71
    assert 0 < metrics["top1"] < 1


def test_val_metric_is_independent_of_the_distribution_of_rows(evaluated):
    (one,) = outcome(evaluated, "val-1")
    assert 0 < one < 1
    assert outcome(evaluated, "val-2") == [one] * 2
    assert outcome(evaluated, "val-3") == [one] * 3


def test_a_failure_on_one_rank_is_raised_on_the_ranks_that_wait(evaluated):
    waiting, failed = outcome(evaluated, "fail")
    assert failed == "DataError: image 7 is truncated"
    assert waiting.startswith("DataError: rank 1 failed: image 7 is truncated")
    (waiting,) = outcome(evaluated, "fail_on_rank_0")  # rank 0 itself ended with an IndexError
    assert "rank 0 failed: IndexError: list index out of range" in waiting


def test_an_exited_process_is_detected(evaluated):
    (waiting,) = outcome(evaluated, "exit_suddenly")
    assert waiting.startswith("ResourceError: rank 0 cannot continue: another process")
    assert json.loads((evaluated / "codes.json").read_text())["exit_suddenly"] == [0, 9]
