"""`evaluate.gate.versus`: a new model compared with a run, and with the live version of a store."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import SMALL

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.data import Store
from arcloop.errors import ConfigError
from arcloop.evaluation import load_query_results
from arcloop.evaluation.incumbent import check_incumbent
from arcloop.pipeline.chains import OTHER_DATA, find_store
from arcloop.retrieval import load_model

OLD, NEW = Path("runs/synthetic"), Path("runs/new")
VERSUS = f"evaluate.gate.versus={OLD}"


def versus(folder=NEW / "evaluation"):
    return json.loads((folder / "versus.json").read_bytes())


def answers(run, store):
    """Whether the model of a run answers the queries of a store correctly, by brute force."""
    model, images = load_model(run / "model.pt", "cpu"), Store.open(store)
    (queries, labels), (gallery, gallery_labels) = (
        images.gather(split, np.arange(images.rows(split))) for split in ("query", "gallery")
    )
    nearest = (model.embed(queries) @ model.embed(gallery).T).argmax(axis=1)
    return gallery_labels[nearest] == labels


def check_flips(found, store):
    before, now = answers(OLD, store), answers(NEW, store)
    assert found["queries"] == len(now)
    assert found["negative_flips"] == (before & ~now).sum() > 0
    assert found["positive_flips"] == (now & ~before).sum()
    assert found["metrics"]["top1"]["difference"] == pytest.approx(now.mean() - before.mean())
    for flip in found["flips"]:
        assert before[flip["query_row"]]
        assert not now[flip["query_row"]]


def test_training_compares_with_the_stored_answers_of_a_run(both, capsys):
    stored = [load_query_results(run / "evaluation").correct for run in (OLD, NEW)]
    found = versus()
    check_flips(found, find_store(OLD))
    assert found["negative_flips"] == (stored[0] & ~stored[1]).sum()
    recorded = json.loads((OLD / "evaluation/metrics.json").read_bytes())
    assert found["metrics"]["eer"]["incumbent"] == recorded["eer"]
    reasons = json.loads((NEW / "evaluation/gate.json").read_bytes())["reasons"]
    assert any(reason.startswith(f"Compared with {OLD}: top1 changed") for reason in reasons)
    page = (NEW / "evaluation/report.html").read_text("utf-8")
    assert f"Compared with {OLD}" in page
    assert page.count("now predicted") == len(found["flips"]) > 0
    assert page.count("before predicted") == len(found["gains"]) > 0
    assert main(["lineage", str(NEW / "evaluation")]) == 0
    assert f"compared with {OLD}" in capsys.readouterr().out
    assert not list(NEW.glob(".evaluation*"))


def test_a_model_that_was_evaluated_otherwise_is_evaluated_again(both):
    """With other settings its stored results are not used, but the numbers are the same."""
    before = versus()
    command = ["evaluate", f"run_dir={NEW}", VERSUS, "evaluate.batch_size=40"]
    assert main(command) in (0, 3)
    found = versus()
    for one, other in zip(before.pop("flips"), found.pop("flips"), strict=True):
        assert one == pytest.approx(other, abs=1e-5)  # similarities are rounded in other batches
    assert found == before
    assert not list(NEW.glob(".evaluation*"))


def test_both_models_are_compared_on_other_data(both):
    assert main(["evaluate", f"run_dir={NEW}", VERSUS, "data.noise=0.9"]) in (0, 3)
    (folder,) = (NEW / OTHER_DATA).iterdir()
    evaluation = artifacts.load(folder / "evaluation", "evaluation")
    check_flips(versus(folder / "evaluation"), find_store(NEW, evaluation))


def test_the_live_version_of_a_model_store_is_compared(both):
    assert main(["deploy", f"run_dir={OLD}", "force=true"]) == 0
    before = versus()
    assert main(["evaluate", f"run_dir={NEW}", "evaluate.gate.versus=model_store/synthetic",
                 "evaluate.gate.max_negative_flips=0"]) == 3  # fmt: skip
    found = versus()
    assert found.pop("incumbent") == "model_store/synthetic"
    before.pop("incumbent")
    assert found == before
    reasons = json.loads((NEW / "evaluation/gate.json").read_bytes())["reasons"]
    assert reasons[-1].startswith("The share of queries that became wrong is 0.")


def test_a_run_is_reproduced_without_the_model_that_it_was_compared_with(both):
    shutil.rmtree(OLD)
    assert main(["reproduce", str(NEW)]) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate.gate.versus=runs/missing"], "there is no run here"),
        (["evaluate.gate.versus=stores"], "there is no run here"),
        (["evaluate.gate.max_loss=0.001"], "set evaluate.gate.versus"),
        ([VERSUS, "evaluate.gate.loss_metric=top2"], "must be one of top1, "),
        (["evaluate.gate.use=maybe"], "must be one of estimate, interval"),
        ([VERSUS, "data.image_size=20"], "takes images of shape [16, 16, 1]"),
    ],
)
def test_errors_before_training(work, capsys, overrides, message):
    assert main(["run", *SMALL, *overrides, "run_dir=runs/other"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not Path("runs/other/manifest.json").exists()
    assert not Path("runs/other/checkpoints").exists()


def test_a_run_without_an_evaluation_is_refused(work, capsys):
    shutil.rmtree(OLD / "evaluation")
    assert main(["evaluate", f"run_dir={OLD}", VERSUS]) == 2
    assert "there is no evaluation here" in capsys.readouterr().err


def store_with(live):
    Path("store").mkdir()
    Path("store/live.json").write_text(live)
    return "store"


def archive(name, content):
    with zipfile.ZipFile("some.mar", "w") as file:
        file.writestr(name, content)
    return "some.mar"


def damaged_run(change):
    shutil.copytree(OLD, "runs/damaged")
    change(Path("runs/damaged/golden.npz"))
    return "runs/damaged"


@pytest.mark.parametrize(
    "make",
    [
        lambda: store_with("[]"),
        lambda: store_with("{}"),
        lambda: store_with("2"),
        lambda: archive("other.txt", ""),
        lambda: archive("manifest.json", "[]"),
        lambda: archive("manifest.json", "{}"),  # and no golden batch
        lambda: damaged_run(lambda golden: golden.unlink()),
        lambda: damaged_run(lambda golden: golden.write_bytes(b"")),
        lambda: damaged_run(lambda golden: golden.write_bytes(b"no zip")),
        lambda: damaged_run(lambda golden: np.savez(golden, other=np.zeros(3))),
    ],
)
def test_an_incumbent_that_cannot_be_read_is_reported(work, make):
    versus = make()
    with pytest.raises(ConfigError, match="nothing to compare with") as error:
        check_incumbent(versus, (16, 16, 1))
    assert f"evaluate.gate.versus={versus}" in str(error.value)
