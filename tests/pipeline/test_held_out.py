"""Classes held out for the calibration, through the command line."""

import json
import re

import numpy as np
import pytest
import torch
from tests.conftest import SMALL, arcloop_in

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.data import Store
from arcloop.pipeline.chains import find_store
from arcloop.runtime.images import encode_png

RUN = [
    *SMALL, "data.num_classes=8", "calibration.held_out_classes=3", "calibration.far=0.1",
    "head=arcface_sharded", "sampler=pk", "sampler.images_per_class=10",
    "evaluate.gate.min_top1=null", "trainer.max_epochs=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return arcloop_in(tmp_path_factory.mktemp("held_out"), "run", *RUN)


@pytest.fixture
def run(work):
    return work / "runs/synthetic"


def read(path):
    return json.loads(path.read_bytes())


def test_a_run_records_its_held_out_classes(run):
    held_out = artifacts.read(run, "run").info["held_out_classes"]
    store = Store.open(find_store(run))
    assert len(held_out) == 3
    assert set(held_out) < set(store.classes)
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert len(best["state_dict"]["head.weight"]) == 5
    labels = np.concatenate([store.labels("train"), store.labels("val")])
    names = np.array(store.classes)[labels]
    record = read(run / "index/faiss_label.json")["calibration"]
    assert record["protocol"] == "held-out classes"
    assert record["far"] == 0.1
    assert record["num_queries"] == np.isin(names, held_out).sum()
    assert record["num_classes"] == 3
    index = artifacts.read(run / "index", "index").info
    assert (index["calibration"], index["held_out_classes"]) == (record, held_out)


def test_the_evaluation_has_the_protocol_and_both_top1(run):
    metrics = read(run / "evaluation/metrics.json")
    held_out = artifacts.read(run, "run").info["held_out_classes"]
    store = Store.open(find_store(run))
    share = np.isin(np.array(store.classes)[store.labels("query")], held_out).mean()
    mean = share * metrics["top1_held_out_classes"] + (1 - share) * metrics["top1_trained_classes"]
    assert mean == pytest.approx(metrics["top1"])
    report = (run / "evaluation/report.html").read_text()
    assert "Top-1, held-out classes" in report
    assert re.search(r"false accept rate 0\.1 on \d+ images of 3 held-out classes", report)


def test_the_index_of_a_finished_run_keeps_the_classes_of_the_training(run, capsys):
    before = read(run / "index/faiss_label.json")
    assert main(["index", f"run_dir={run}", "calibration.held_out_classes=0"]) == 0
    text = " ".join(capsys.readouterr().err.split())
    assert "held_out_classes=0 has no effect: the run was trained with 3" in text
    assert read(run / "index/faiss_label.json") == before


def test_other_held_out_classes_are_another_run(run, capsys):
    assert main(["run", *RUN, "calibration.held_out_classes=2"]) == 2
    assert "a run of another config" in capsys.readouterr().err
    # The head fits, but its classes have other numbers.
    assert main(["train", *RUN, "resume=true", "seed=1"]) == 2
    assert "this run was trained without 3 classes" in capsys.readouterr().err


def test_the_rate_can_change_without_training_again(run, capsys):
    assert main(["run", *RUN, "calibration.far=0.2"]) == 0
    assert "was already trained with this config" in " ".join(capsys.readouterr().err.split())
    assert read(run / "index/faiss_label.json")["calibration"]["far"] == 0.2


def test_too_many_held_out_classes_are_refused_before_the_run_is_created(in_tmp, capsys):
    assert main(["train", *RUN, "calibration.held_out_classes=7"]) == 2
    assert "leaves 1 of 8 classes to train on" in capsys.readouterr().err
    assert not (in_tmp / "runs/synthetic").exists()


def test_unknown_images_are_checked_before_training_and_traced_by_lineage(run, capsys):
    folder = run.parents[1] / "unknown"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(20):
        image = encode_png(random.integers(0, 256, (16, 16, 1), dtype=np.uint8))
        (folder / f"{number}.png").write_bytes(image)
    given = [f"calibration.unknown={folder}"]
    assert main(["train", *RUN, *given, "calibration.far=0.01", "run_dir=runs/new"]) == 2
    assert "20 images of unknown things cannot measure" in capsys.readouterr().err
    assert not (run.parent / "new").exists()
    assert main(["index", f"run_dir={run}", *given]) == 0
    record = read(run / "index/faiss_label.json")["calibration"]
    assert (record["protocol"], record["num_queries"]) == ("unknown images", 20)
    assert main(["lineage", str(run / "index")]) == 0
    (folder / "3.png").unlink()
    capsys.readouterr()
    assert main(["lineage", str(run / "index")]) == 1
    assert "the images were changed" in " ".join(capsys.readouterr().out.split())


def test_a_query_states_how_the_threshold_was_made(run, capsys):
    store = Store.open(find_store(run))
    image = run.parent / "query.png"
    image.write_bytes(encode_png(store.gather("query", np.array([0]))[0][0]))
    assert main(["query", str(image), "--run", str(run), "--json"]) == 0
    out, err = capsys.readouterr()
    labels = read(run / "index/faiss_label.json")
    assert json.loads(out)["threshold"] == {
        "similarity": labels["threshold"], "far": 0.1, "protocol": "held-out classes"
    }  # fmt: skip
    assert "false accept rate 0.1" in err


def test_a_very_small_set_is_trained_and_calibrated(in_tmp, capsys):
    small = [
        "data.num_classes=20", "data.train=80", "data.val=40", "data.gallery=20", "data.query=20",
        "trainer.max_epochs=1", "evaluate.gate.min_top1=null",
    ]  # fmt: skip
    assert main(["run", *SMALL, *small]) == 0
    text = " ".join(capsys.readouterr().err.split())
    assert "40 unknown queries cannot measure a false accept rate of 0.01" in text
