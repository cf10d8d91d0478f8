"""The command as a user types it, on small generated data, from images to an answer."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests import forks
from tests.conftest import SMALL

from arcloop import artifacts
from arcloop.artifacts import atomic
from arcloop.artifacts.metrics import read_metrics
from arcloop.cli.main import EXTRA_PACKAGES, VERBS, main
from arcloop.models.checkpoints import read_checkpoint
from arcloop.pipeline.chains import FROM_RUN
from arcloop.runtime.images import encode_png


def manifests(folder):
    """Hash of each artifact's manifest, by path."""
    return {
        str(p.parent.relative_to(folder)): atomic.sha256_file(p)
        for p in sorted(folder.rglob("manifest.json"))
    }


def test_run_makes_every_artifact_and_each_is_complete(finished):
    run = finished / "runs/synthetic"
    for kind, path in {"run": run, "gallery": run / "gallery", "index": run / "index",
                       "evaluation": run / "evaluation"}.items():  # fmt: skip
        artifacts.load(path, kind)
    (store,) = (finished / "stores").iterdir()
    artifacts.load(store, "store")
    assert artifacts.load(store / "validation", "validation").info["passed"]
    for name in ("config.yaml", "model.pt", "metrics.csv", "checkpoints/best.ckpt",
                 "checkpoints/last.ckpt", "index/faiss_index.bin", "index/faiss_label.json",
                 "evaluation/metrics.json", "evaluation/gate.json", "evaluation/report.html",
                 "evaluation/confusion_matrix.csv", "gallery/embeddings-00000.npy"):  # fmt: skip
        assert (run / name).stat().st_size > 0
    metrics = read_metrics(run / "evaluation")
    assert metrics["top1"] > 0.8
    assert all(np.isfinite(value) for value in metrics.values())
    assert json.loads((run / "evaluation/gate.json").read_text())["passed"] is True


def test_an_answer_can_be_traced_to_the_store(finished):
    run = finished / "runs/synthetic"
    (store,) = (finished / "stores").iterdir()
    index = artifacts.read(run / "index", "index")
    gallery = artifacts.read(run / "gallery", "gallery")
    trained = artifacts.read(run, "run")
    assert index.parents["gallery"] == gallery.sha256
    assert index.parents["model"] == gallery.parents["model"] == trained.file_sha256("model.pt")
    assert gallery.parents["store"] == trained.parents["store"]
    assert trained.parents["store"] == artifacts.read(store, "store").sha256


def test_running_again_changes_nothing(work):
    before = manifests(work)
    assert main(["run", *SMALL]) == 0
    assert manifests(work) == before


def test_changing_the_index_runs_only_what_depends_on_it(work):
    before = manifests(work)
    assert main(["run", *SMALL, "index=hnsw"]) == 0
    changed = {path for path, sha256 in manifests(work).items() if before[path] != sha256}
    assert changed == {"runs/synthetic/index", "runs/synthetic/evaluation"}


def test_verbs_on_a_finished_run_keep_its_settings(work):
    assert main(["index", "run_dir=runs/synthetic", "index=hnsw"]) == 0
    assert main(["evaluate", "run_dir=runs/synthetic"]) == 0
    index = artifacts.load(work / "runs/synthetic/index", "index")
    assert index.config["index"]["factory"] == "HNSW32,Flat"
    evaluation = artifacts.load(work / "runs/synthetic/evaluation", "evaluation")
    assert evaluation.parents["index"] == index.sha256


def test_gate_that_does_not_pass_gives_exit_code_3(work):
    assert main(["evaluate", "run_dir=runs/synthetic", "evaluate.gate.max_eer=0.01"]) == 3
    verdict = json.loads((work / "runs/synthetic/evaluation/gate.json").read_text())
    assert verdict["passed"] is False
    assert any("eer" in reason for reason in verdict["reasons"])


def test_query_finds_a_picture_of_the_gallery(work, capsys):
    names, labels = gallery_pictures(work, 5)
    assert main(["query", *names, "--run", "runs/synthetic", "-k", "3", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [a["label"] for a in answers] == labels
    assert [a["neighbours"][0]["row"] for a in answers] == [0, 1, 2, 3, 4]
    assert all(len(a["neighbours"]) == 3 for a in answers)
    assert all(Path(t).is_file() for a in answers for t in a["thumbnails"])


def gallery_pictures(work, count):
    """Write pictures of the gallery; returns their names and labels."""
    from arcloop.data import Store

    (folder,) = (work / "stores").iterdir()
    images, labels = Store.open(folder).gather("gallery", np.arange(count))
    for number, image in enumerate(images):
        (work / f"{number}.png").write_bytes(encode_png(image))
    return [f"{number}.png" for number in range(count)], labels.tolist()


def test_query_answers_the_good_files_and_reports_all_bad_ones(work, capsys):
    (first, second), labels = gallery_pictures(work, 2)
    (work / "x.txt").write_text("no image")
    names = [first, "x.txt", "missing.png", second, "runs"]
    assert main(["query", *names, "--run", "runs/synthetic", "-k", "1", "--json"]) == 1
    printed = capsys.readouterr()
    answers = [json.loads(line) for line in printed.out.splitlines()]
    assert [answer["image"] for answer in answers] == [first, second]
    assert [answer["label"] for answer in answers] == labels
    assert "error: 3 of 5 files could not be read:" in printed.err
    for fault in ("x.txt: not an image", "missing.png: no such file", "runs: cannot be"):
        assert fault in printed.err


def test_query_without_a_place_for_thumbnails(work, capsys):
    """The same happens on a read-only disk or in the folder of another user."""
    names, labels = gallery_pictures(work, 2)
    (work / "runs/synthetic-thumbnails").write_text("not a folder")
    command = ["query", *names, "--run", "runs/synthetic", "-k", "1", "--json"]
    assert main(command) == 0
    printed = capsys.readouterr()
    answers = [json.loads(line) for line in printed.out.splitlines()]
    assert [answer["label"] for answer in answers] == labels
    assert [answer["thumbnails"] for answer in answers] == [[], []]
    message = "no thumbnails: runs/synthetic-thumbnails cannot be written: File exists"
    assert printed.err.count("no thumbnails") == printed.err.count(message) == 1
    assert main([*command, "--thumbnails", "other/place"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(t).parent for a in answers for t in a["thumbnails"]] == [Path("other/place")] * 2
    assert all(Path(t).is_file() for a in answers for t in a["thumbnails"])


def test_two_runs_of_one_config_and_seed_are_equal_to_the_byte(finished, in_tmp):
    assert main(["run", *SMALL, "run_dir=again"]) == 0
    for name in (
        "model.pt", "index/faiss_index.bin", "index/faiss_label.json", "evaluation/metrics.json",
        "metrics.csv", "gallery/embeddings-00000.npy",
    ):  # fmt: skip
        first, second = finished / "runs/synthetic" / name, in_tmp / "again" / name
        assert first.read_bytes() == second.read_bytes(), name


def test_another_seed_gives_another_model(finished, in_tmp):
    assert main(["train", *SMALL, "seed=1", "callbacks=export_only"]) == 0
    model = in_tmp / "runs/synthetic/model.pt"
    assert model.read_bytes() != (finished / "runs/synthetic/model.pt").read_bytes()


def test_an_interrupt_prints_one_line_and_keeps_the_checkpoint(in_tmp):
    arguments = ["train", *SMALL, "trainer.max_epochs=500"]
    process = forks.start(main, arguments, output="output.txt")
    last = in_tmp / "runs/synthetic/checkpoints/last.ckpt"
    forks.wait_for(last.exists, process)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    text = Path("output.txt").read_text()
    assert "interrupted" in text
    assert "Traceback" not in text
    assert read_checkpoint(last)["global_step"] > 0


def test_a_disk_that_fills_up_while_training(in_tmp, small_disk, capsys):
    run = small_disk / "run"
    arguments = ["train", *SMALL, f"run_dir={run}", "callbacks=export_only"]
    (small_disk / "filler").write_bytes(bytes(900_000))
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "No space left" in error
    assert str(run) in error
    assert "Traceback" not in error
    assert not artifacts.exists(run)
    assert not list(run.rglob("*.tmp-*"))
    for checkpoint in run.rglob("*.ckpt"):
        read_checkpoint(checkpoint)  # complete or absent
    (small_disk / "filler").unlink()
    assert main(arguments) == 0
    artifacts.load(run, "run")


WRONG = {
    "a run of another config": (["train", *SMALL, "head.margin=0.1"], 2, "overwrite=true"),
    "no such run": (["evaluate", "run_dir=runs/none"], 1, "there is no run here"),
    "no checkpoint": (["train", *SMALL, "run_dir=r", "resume=true"], 2, "no last.ckpt"),
    "a foreign folder": (["train", *SMALL, "run_dir=stores"], 2, "do not belong to a run"),
    "a mount point as store": (["prepare", *SMALL, "store_dir=/"], 2, "a mount point"),
    "a training that diverges": (
        ["train", *SMALL, "run_dir=r", "optimizer.lr=1e30"], 1,
        "training diverged: the loss is nan in step 2, epoch 1"),
    "a wrong value": (["train", "loader.batch_size=0"], 2, "loader.batch_size=0"),
    "an index too large for the gallery": (
        ["index", "run_dir=runs/synthetic", "index=factory", "index.factory='IVF4096,Flat'"], 2,
        "is too small to train the index"),
    "a factory faiss does not know": (
        ["index", "run_dir=runs/synthetic", "index=factory", "index.factory=Nope"], 2, "Nope"),
    "an unknown verb": (["trian"], 2, "did you mean train"),
    "not an image": (["query", "x.txt", "--run", "runs/synthetic"], 1, "x.txt"),
    "a missing image": (["query", "y.png", "--run", "runs/synthetic"], 1, "no such file"),
    "query of no run": (["query", "x.txt", "--run", "runs/none"], 1, "there is no run here"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_clear_message_and_changes_nothing(work, capsys, case):
    (work / "x.txt").write_text("no image")
    before = manifests(work)
    arguments, code, message = WRONG[case]
    assert main(arguments) == code
    text = capsys.readouterr().err
    assert message in text
    assert "remedy:" in text
    assert "Traceback" not in text
    assert manifests(work) == before


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("runs/synthetic/model.pt", "model.pt"),
        ("runs/synthetic/index/faiss_index.bin", "faiss_index.bin"),
        ("runs/synthetic/gallery/embeddings-00000.npy", "embeddings-00000.npy"),
    ],
)
def test_a_flipped_byte_is_found(work, capsys, file, message):
    content = bytearray((work / file).read_bytes())
    content[len(content) // 2] ^= 1
    (work / file).write_bytes(content)
    assert main(["evaluate", "run_dir=runs/synthetic"]) == 1
    assert message in capsys.readouterr().err


def test_a_model_that_was_removed(work, capsys):
    (work / "runs/synthetic/model.pt").unlink()
    assert main(["evaluate", "run_dir=runs/synthetic"]) == 1
    assert "model.pt is missing" in capsys.readouterr().err


def test_index_of_another_model_is_refused(work, capsys):
    other = ["seed=5", "run_dir=runs/other", "trainer.max_epochs=1", "callbacks.evaluate=null"]
    assert main(["train", *SMALL, *other, "callbacks.tensorboard=null"]) == 0
    shutil.rmtree(work / "runs/synthetic/index")
    shutil.copytree(work / "runs/other/index", work / "runs/synthetic/index")
    assert main(["evaluate", "run_dir=runs/synthetic"]) == 1
    assert "another model" in capsys.readouterr().err


def test_a_store_that_was_removed(work, capsys):
    shutil.rmtree(work / "stores")
    assert main(["evaluate", "run_dir=runs/synthetic"]) == 1
    assert "arcloop prepare" in capsys.readouterr().err


def test_traceback_is_shown_when_asked_for(in_tmp):
    command = [sys.executable, "-m", "arcloop", "train", "head.margn=1"]
    for value, shown in (("", False), ("1", True)):
        env = {**os.environ, "ARCLOOP_TRACEBACK": value}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert ("Traceback" in done.stderr) == shown
        assert "did you mean head.margin" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], [], *([verb, "--help"] for verb in VERBS)])
def test_help(arguments, capsys):
    try:
        code = main(arguments)
    except SystemExit as ended:  # argparse
        code = ended.code
    assert code == 0
    text = capsys.readouterr().out
    assert " ".join(["arcloop", *arguments[:-1]]) in text


@pytest.mark.parametrize("verb", [name for name, verb in VERBS.items() if verb.extra])
def test_a_verb_whose_extra_is_not_installed(verb, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    missing = EXTRA_PACKAGES[VERBS[verb].extra]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name)
    )
    assert main([verb, "run_dir=r"]) == 2
    text = capsys.readouterr().err
    assert f"{missing[0]}" in text
    assert "is not installed" in text
    assert f"pip install 'arcloop[{VERBS[verb].extra}]'" in text
    assert f"where: arcloop {verb}" in text


@pytest.mark.parametrize("verb", FROM_RUN)
def test_a_verb_on_an_artifact_that_is_not_a_run(work, capsys, verb):
    assert main([verb, "run_dir=runs/synthetic/index"]) == 1
    text = capsys.readouterr().err
    assert "this is an artifact of kind 'index', not 'run'" in text
    assert "runs/synthetic/index" in text


def test_a_run_that_does_not_record_its_overrides(work, capsys):
    file = work / "runs/synthetic/manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["info"]["overrides"]
    file.write_text(json.dumps(manifest))
    assert main(["evaluate", "run_dir=runs/synthetic"]) == 1
    assert "does not record the overrides" in capsys.readouterr().err


def test_a_run_with_one_class_warns_and_does_not_pass_the_gate(in_tmp, capsys):
    assert main(["run", *SMALL, "data.num_classes=1", "trainer.max_epochs=1"]) == 3
    assert "'class-0' is the only class" in capsys.readouterr().err
    gate = json.loads(Path("runs/synthetic/evaluation/gate.json").read_bytes())
    assert gate["passed"] is False
    assert gate["reasons"][0].startswith("The gallery has one class")
