"""The compiled pipeline, run through kfp.local with every step in a process."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
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
def first(in_folder, small):
    """The folder after one `python kubeflow/submit.py`, as a user types it."""
    done = in_folder / "done.json"
    if not done.exists():
        ended = subprocess.run(
            [sys.executable, str(SUBMIT), *small],
            capture_output=True, text=True, timeout=120, cwd=in_folder,
        )  # fmt: skip
        done.write_text(json.dumps([ended.returncode, ended.stderr]))
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


def test_only_what_depends_on_a_change_runs_again(first, run_local):
    # Another way of writing the same config is the same config.
    assert ran(run_local("head.margin=0.30", "seed=0")) == ["deploy"]
    done = run_local("index=hnsw")
    assert ran(done) == ["index", "evaluate", "deploy"]
    assert {n for n, state in done.states.items() if state == "from the cache"} == set(STEPS[:4])
    index = artifacts.load(done.evaluation.parents[1] / "index/index_out", "index")
    assert index.config["index"]["factory"] == "HNSW32,Flat"


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


def test_outputs_are_written_to_the_volume(first, run_local, in_folder, image, monkeypatch):
    """The very file for a cluster, with its volume in a folder of this machine."""
    volume = in_folder / "volume"
    monkeypatch.setenv("ARCLOOP_VOLUME", str(volume))
    done = run_local(
        "cluster=onprem", f"cluster.image={image}", f"cluster.volume.mount={volume}",
        "cluster.steps.train.gpus=0", "cluster.steps.embed.gpus=0",
    )  # fmt: skip
    assert ran(done) == ["compute_fingerprint", *STEPS, "deploy"]
    assert done.evaluation.is_relative_to(volume)
    # The default of deploy.model_store is relative, so it is below the mount.
    assert ModelStore(volume / "model_store/synthetic", "synthetic").live() is not None
    made = {path.parent.name for path in volume.rglob("manifest.json")}
    assert made == {f"{kind}_out" for kind in
                    ("store", "validation", "run", "gallery", "index", "evaluation")}  # fmt: skip


def test_a_message_contains_metrics_and_outcome(first, run_local, webhook):
    done = run_local("notify=slack")
    assert ran(done) == ["deploy", "notify"]
    (text,) = webhook
    assert "the gate passed; deployed" in text
    metrics = json.loads((done.evaluation / "metrics.json").read_text())
    assert f"top1 {metrics['top1']:.4f}" in text


def test_the_deployed_version_is_registered(first, run_local, in_folder):
    with running_registry() as registry:
        done = run_local(f"cluster.model_registry={registry.url}")
    assert ran(done) == ["deploy", "register"]
    model, version, artifact = registry.made
    live = ModelStore(in_folder / "model_store/synthetic", "synthetic").live()
    assert (model["name"], version["name"]) == ("synthetic", live.version)
    assert artifact["uri"] == live.path.as_uri()
    top1 = version["customProperties"]["metric.top1"]["double_value"]
    assert top1 == read_metrics(done.evaluation)["top1"]


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


def test_a_webhook_that_is_down_does_not_fail_the_run(first, run_local, monkeypatch):
    monkeypatch.setenv("ARCLOOP_WEBHOOK", "http://127.0.0.1:9/secret")
    done = run_local("notify=slack")
    assert "notify" in ran(done)
    log = max(Path("runs/pipelines").glob("*.log")).read_text()
    assert "the notification was not delivered: URLError" in log
    assert "/secret" not in log


def test_a_sweep_is_ranked_and_its_best_combination_deployed(first, in_folder, small, capsys):
    assert submit([*small, "-m", "index=flat,hnsw"]) == 0
    printed = capsys.readouterr()
    assert [name for name in STEPS if f"{name}: ran" in printed.err] in ([], ["index", "evaluate"])
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
    words = [*small, "-m", "sweep=optuna", "sweep.trials=2", "trainer.max_epochs=1",
             "optimizer.lr=interval(0.01,0.1)"]  # fmt: skip
    assert submit(words) == 0
    printed = capsys.readouterr().err
    for task in ("suggest", "train", "evaluate", "report"):
        assert printed.count(f"{task}: ran") == 2
    assert "deploy: ran" in printed
    storage = "sqlite:///runs/pipelines/optuna.db"
    (study,) = optuna.get_all_study_summaries(storage)
    trials = optuna.load_study(study_name=study.study_name, storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2
    highest = max(trial.value for trial in trials)
    best = [trial.params["optimizer.lr"] for trial in trials if trial.value == highest]
    lines = {f"best: optimizer.lr-{value}, val_map_at_r {highest:.4f}" for value in best}
    assert lines & set(printed.splitlines())


def write_idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def test_prepare_runs_again_when_the_content_of_the_data_changes(run_local, in_folder, capsys):
    """Eight images cannot pass validation, so each of these runs is short."""
    images = np.arange(8 * 16 * 16).reshape(8, 16, 16) % 251
    Path("idx").mkdir()
    for stem in ("train", "t10k"):
        write_idx(Path(f"idx/{stem}-images-idx3-ubyte"), images)
        write_idx(Path(f"idx/{stem}-labels-idx1-ubyte"), np.arange(8) % 2)
    small_idx = ["data.root=idx", "data.val=4", "data.gallery=2"]
    lines = []
    for changed in (False, True):
        if changed:
            write_idx(Path("idx/train-images-idx3-ubyte"), images[::-1])
        with pytest.raises(ArcloopError):
            run_idx(run_local, small_idx)
        lines.append(capsys.readouterr().err.splitlines()[0])
    assert [line.rpartition(",")[0] or line for line in lines] == [
        "prepare: ran", "prepare: ran",
    ]  # fmt: skip


def run_idx(run_local, overrides):
    """Like `run_local`, without the settings that only synthetic data have."""
    return run_local("data=idx", *overrides, without="data")


def test_a_wrong_config_is_rejected_before_kfp_is_imported(in_folder, capsys):
    code = (
        "import sys; from arcloop.kfp.submission import main; code = main(['head.margn=1']);"
        "assert not {'kfp', 'torch'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "did you mean head.margin" in done.stderr
    assert submit(["--help"]) == 0
    assert os.listdir(in_folder)
