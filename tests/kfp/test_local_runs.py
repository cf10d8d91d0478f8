"""The compiled pipeline, run through kfp.local with every step in a process."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch
from tests.kfp.model_registry import running_registry

from arcloop import artifacts
from arcloop.artifacts.metrics import read_metrics
from arcloop.cli.main import main as arcloop
from arcloop.errors import ArcloopError
from arcloop.kfp.submission import main as submit
from arcloop.serving.model_store import ModelStore

SUBMIT = Path(__file__).parents[2] / "kubeflow" / "submit.py"
STEPS = ["prepare", "validate", "train", "embed", "index", "evaluate"]


def ran(done):
    return [name for name, state in done.states.items() if state == "ran"]


def folder_of(step, name):
    """The output of a step in the module's first run."""
    return min(Path("runs/pipelines").glob(f"arcloop-2*/{step}/{name}"))


@pytest.fixture
def first(in_folder, small, capsys):
    """The exit code and the output of the first run in the folder."""
    done = in_folder / "done.json"
    if not done.exists():
        done.write_text(json.dumps([submit(small), capsys.readouterr().err]))
    return json.loads(done.read_text())


def test_submit_runs_the_whole_pipeline_and_deploys(first, in_folder):
    code, output = first
    assert code == 0, output
    for step in [*STEPS, "deploy"]:
        assert f"{step}: ran" in output
    assert "the gate passed" in output
    assert ModelStore(in_folder / "model_store/synthetic", "synthetic").live() is not None
    evaluation = folder_of("evaluate", "evaluation_out")
    assert f"report: {evaluation.resolve()}/report.html" in output


def weights(model):
    """Hash of all tensors of a scripted model; its code differs by the order of torch's sets."""
    digest = hashlib.sha256()
    for name, tensor in sorted(torch.jit.load(model).state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_artifacts_are_those_of_arcloop_run(first, in_folder, small):
    assert arcloop(["run", *small]) == 0
    run = in_folder / "runs/synthetic"
    pipeline = {
        "store": folder_of("prepare", "store_out"),
        "run": folder_of("train", "run_out"),
        "gallery": folder_of("embed", "gallery_out"),
        "index": folder_of("index", "index_out"),
        "evaluation": folder_of("evaluate", "evaluation_out"),
    }
    (store,) = (path for path in (in_folder / "stores").iterdir() if path.is_dir())
    made = artifacts.load(pipeline["store"], "store")
    assert made.files == artifacts.read(store, "store").files
    assert weights(pipeline["run"] / "model.pt") == weights(run / "model.pt")
    for role, name in (
        ("gallery", "embeddings-00000.npy"), ("index", "faiss_index.bin"),
        ("evaluation", "metrics.json"), ("evaluation", "gate.json"),
        ("evaluation", "confusion_matrix.csv"), ("evaluation", "roc.csv"),
    ):  # fmt: skip
        ours = artifacts.load(pipeline[role], role).file_sha256(name)
        assert ours == artifacts.load(run / role, role).file_sha256(name), name
    lineage = artifacts.read(pipeline["evaluation"], "evaluation").parents
    assert lineage["store"] == made.sha256


def test_the_ui_shows_metrics_matrix_and_reports(first):
    output = folder_of("evaluate", "executor_output.json")
    shown = {
        name: made["artifacts"][0]["metadata"]
        # The launcher of KFP reads it with protojson, which has no NaN and no Infinity.
        for name, made in json.loads(output.read_text(), parse_constant=pytest.fail)[
            "artifacts"
        ].items()
    }
    folder = folder_of("evaluate", "evaluation_out")
    metrics = read_metrics(folder)
    assert shown["metrics"] == metrics
    recorded = shown["evaluation_out"]
    assert recorded["metric.top1"] == metrics["top1"]
    assert (
        recorded["data"] == artifacts.read(folder_of("prepare", "store_out"), "store").info["key"]
    )
    rows = [row["row"] for row in shown["confusion"]["confusionMatrix"]["rows"]]
    assert sum(map(sum, rows)) == metrics["num_queries"]
    assert len(rows) == 3
    rates = [(p["falsePositiveRate"], p["recall"]) for p in shown["roc"]["confidenceMetrics"]]
    assert rates == sorted(rates)
    assert rates[-1] == (1.0, 1.0)
    for name, start in (("report", "<!doctype html>"), ("summary", "# the gate passed")):
        text = folder.with_name(name).read_text()
        assert text.lower().startswith(start)


def test_an_equal_config_is_deployed_registered_and_notified(first, run_local, in_folder, webhook):
    """Another way of writing the same config is the same config."""
    with running_registry() as registry:
        done = run_local(
            "head.margin=0.30", "seed=0", "notify=slack", f"cluster.model_registry={registry.url}"
        )
    assert ran(done) == ["deploy", "register", "notify"]
    (text,) = webhook
    assert "the gate passed; deployed" in text
    metrics = read_metrics(done.evaluation)
    assert f"top1 {metrics['top1']:.4f}" in text
    model, version, artifact = registry.made
    live = ModelStore(in_folder / "model_store/synthetic", "synthetic").live()
    assert (model["name"], version["name"]) == ("synthetic", live.version)
    assert artifact["uri"] == live.path.as_uri()
    assert version["customProperties"]["metric.top1"]["double_value"] == metrics["top1"]


def test_a_gate_that_does_not_pass_notifies_and_deploys_nothing(first, run_local, webhook):
    done = run_local("notify=slack", "evaluate.gate.max_eer=0.0")
    assert ran(done) == ["evaluate", "notify"]
    assert not done.passed
    (text,) = webhook
    assert "the gate did not pass; not deployed" in text
    assert "eer" in text


def test_a_failed_step_notifies_and_reports_its_error(first, run_local, webhook):
    with pytest.raises(ArcloopError) as failed:
        run_local("notify=slack", "validation.min_images_per_class=1000")
    text = str(failed.value)
    assert text.startswith("step validate failed: the store has 3 error(s):")
    needed = "at least 1000 are needed (validation.min_images_per_class)"
    assert f"train: class 'class-0' has 80 image(s); {needed}" in text
    assert "Inner task failed" not in text
    log = Path(text.rpartition("log: ")[2])
    assert "Traceback (most recent call last)" in log.read_text()
    (message,) = webhook
    assert ": failed\nstep validate failed: the store has 3 error(s):" in message


def test_a_sweep_is_ranked_and_its_best_combination_deployed(first, in_folder, small, capsys):
    assert submit([*small, "-m", "index=flat,hnsw"]) == 0
    printed = capsys.readouterr()
    assert [name for name in STEPS if f"{name}: ran" in printed.err] == ["index", "evaluate"]
    indices = Path("runs/pipelines").glob("*/index*/index_out")
    factories = [artifacts.load(folder, "index").config["index"]["factory"] for folder in indices]
    assert sorted(factories) == ["Flat", "HNSW32,Flat"]
    last = printed.err[printed.err.index("leaderboard: ran") :]
    assert "index: from the cache" in last
    assert "deploy: ran" in last
    assert "best: index-flat, val_map_at_r 0." in last
    assert printed.out.count("the gate passed") == 2
    page = Path(last.rpartition("leaderboard: ")[2].strip())
    assert page == Path("runs/pipelines/leaderboard.html")
    assert "hnsw" in page.read_text()
    (table,) = Path("runs/pipelines").glob("*/leaderboard/table")
    assert "arcloop pipeline -m" in table.read_text()


def test_a_search_proposes_trains_and_ranks(first, in_folder, small, capsys):
    """One trial is enough; `tests.kfp.test_study` has several, and the sweep ranks several."""
    words = [*small, "-m", "sweep=optuna", "sweep.trials=1", "optimizer.lr=interval(0.01,0.1)"]
    assert submit(words) == 0
    printed = capsys.readouterr().err
    for task in ("suggest", "train", "evaluate", "report"):
        assert printed.count(f"{task}: ran") == 1
    assert "deploy: ran" in printed
    storage = "sqlite:///runs/pipelines/optuna.db"
    (study,) = optuna.get_all_study_summaries(storage)
    (trial,) = optuna.load_study(study_name=study.study_name, storage=storage).trials
    assert trial.state.name == "COMPLETE"
    rate = trial.params["optimizer.lr"]
    assert f"best: optimizer.lr-{rate}, val_map_at_r {trial.value:.4f}\n" in printed


def test_a_wrong_config_is_rejected_before_kfp_is_imported(in_folder, capsys):
    command = [sys.executable, "-X", "importtime", SUBMIT, "head.margn=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert re.search(r"\| +hydra$", done.stderr, flags=re.MULTILINE)
    assert not re.search(r"\| +(kfp|torch)$", done.stderr, flags=re.MULTILINE)
    assert done.returncode == 2, done.stderr
    assert "did you mean head.margin" in done.stderr
    assert submit(["--help"]) == 0
    assert os.listdir(in_folder)
