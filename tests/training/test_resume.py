"""A run that is killed at any point and resumed writes the same bytes as an uninterrupted run."""

import functools
import itertools
import random
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests import forks
from tests.conftest import SMALL
from tests.training import killing

from arcloop.cli.main import main
from arcloop.config.composition import compose_config, to_plain
from arcloop.errors import ArtifactError, ConfigError
from arcloop.models.checkpoints import AtomicCheckpointIO, read_checkpoint
from arcloop.pipeline.reproduce import first_difference
from arcloop.training.resume import Start, find_checkpoint, find_start, run_identity

OVERRIDES = [
    "data=synthetic", "data.train=130", "data.val=30", "data.gallery=30", "data.query=20",
    "data.num_classes=3", "data.image_size=16", "data.noise=1.0", "data.shard_rows=64",
    "loader.batch_size=10", "trainer.max_epochs=4", "trainer.log_every_n_steps=3",
    "backbone.widths=[4,4]", "embedder.embedding_dim=8", "embedder.dropout=0.2",
    "callbacks.last.every_n_steps=2", "evaluate.gate.min_top1=null",
]  # fmt: skip
STEPS = 4 * 13

HOOKS = (
    "on_train_batch_start", "on_before_backward", "on_before_zero_grad", "on_train_batch_end",
    "on_validation_end", "on_train_epoch_end", "replace",
)  # fmt: skip
FILES = (
    "metrics.csv", "model.pt", "index/faiss_index.bin", "index/faiss_label.json",
    "evaluation/metrics.json",
)  # fmt: skip


def run(folder, more, place=""):
    process = forks.start(killing.run, ["run", *OVERRIDES, f"run_dir={folder}", *more], place)
    process.join()
    return process.exitcode


@pytest.mark.parametrize(
    ("kills", "more"), [(len(HOOKS), []), (4, ["callbacks=[ema,early_stopping]"])]
)
def test_run_killed_at_several_steps_ends_with_the_same_bytes(in_tmp, kills, more):
    draw = random.Random(7)
    steps = sorted(draw.sample(range(1, STEPS), kills))
    assert run("whole", more) == 0
    for step, hook in zip(steps, itertools.cycle(HOOKS), strict=False):
        assert run("killed", more, f"{hook}@{step}") == -signal.SIGKILL, (hook, step)
    assert run("killed", more) == 0
    whole, killed = in_tmp / "whole", in_tmp / "killed"
    for file in FILES:
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file
    rows = (whole / "metrics.csv").read_text().splitlines()
    assert [int(row.partition(",")[0]) for row in rows[1:]] == sorted(
        {*range(2, STEPS, 3), *range(12, STEPS, 13)}
    )


@pytest.fixture
def two_checkpoints(tmp_path):
    for step in (3, 5):
        AtomicCheckpointIO().save_checkpoint(
            {"global_step": step, "weights": torch.arange(1000.0)}, tmp_path / "last.ckpt"
        )
    return tmp_path


def test_last_checkpoint_is_found(two_checkpoints):
    assert find_checkpoint(two_checkpoints) == (two_checkpoints / "last.ckpt", 5)


@pytest.mark.parametrize("damage", ["flipped", "torn", "empty"])
def test_damaged_checkpoint_is_reported_and_the_previous_one_is_found(
    two_checkpoints, damage, capsys
):
    last = two_checkpoints / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes({"flipped": bytes(content), "torn": content[:-700], "empty": b""}[damage])
    assert find_checkpoint(two_checkpoints) == (two_checkpoints / "last-previous.ckpt", 3)
    assert "warning" in capsys.readouterr().err


def test_only_damaged_checkpoints_are_an_error(two_checkpoints):
    for path in two_checkpoints.iterdir():
        path.write_bytes(b"x" * 2000)
    with pytest.raises(ArtifactError, match="truncated or was changed"):
        find_checkpoint(two_checkpoints)


def test_no_checkpoint_is_found_in_an_empty_folder(tmp_path):
    assert find_checkpoint(tmp_path) is None


def test_a_new_file_system_is_an_empty_run_folder(tmp_path):
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".DS_Store").write_bytes(b"x")
    assert find_start(tmp_path, "a", {}, {}, resume="auto", overwrite=False) == Start()
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="do not belong to a run"):
        find_start(tmp_path, "a", {}, {}, resume="auto", overwrite=False)


def test_every_flipped_byte_is_detected(tmp_path):
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(3)}, path)
    content = path.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 0x10
        path.write_bytes(flipped)
        with pytest.raises(ArtifactError):
            read_checkpoint(path)


def test_torch_loads_a_checkpoint_with_a_digest(tmp_path):
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.arange(4)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(4))


EARLY_STOPPING = [
    "+callbacks.early_stopping._target_=pytorch_lightning.callbacks.EarlyStopping",
    "+callbacks.early_stopping.monitor=val_top1", "+callbacks.early_stopping.mode=max",
]  # fmt: skip


@functools.cache
def identity(*overrides):
    return run_identity(to_plain(compose_config(["run_dir=run", *overrides])), {"store": "0"})


@pytest.mark.parametrize(
    "overrides",
    [
        EARLY_STOPPING,
        [*EARLY_STOPPING, "+callbacks.early_stopping.patience=7"],
        ["callbacks=ema"],
        ["callbacks=freeze"],
        ["callbacks=warmup"],
        ["callbacks=warmup", "callbacks.warmup.margin_steps=7"],
        ["+callbacks.checkpoint.every_n_epochs=2"],
        ["callbacks.checkpoint=null"],
        ["head.margin=0.4"],
    ],
    ids=" ".join,
)
def test_identity_depends_on_everything_that_changes_the_model(overrides):
    assert identity(*overrides) != identity()
    assert identity(*overrides) != identity(*EARLY_STOPPING, "+callbacks.early_stopping.patience=5")


@pytest.mark.parametrize(
    "override",
    ["callbacks.last.every_n_steps=3", "callbacks.evaluate=null", "callbacks.export=null",
     "callbacks.tensorboard.num_projected=5", "+callbacks.learning_rate.log_momentum=true",
     "callbacks=export_only", "run_dir=/elsewhere/run", "logger=csv", "evaluate.batch_size=3"],
)  # fmt: skip
def test_identity_does_not_depend_on_paths_and_reports(override):
    assert identity(override) == identity()


def test_added_early_stopping_does_not_reuse_the_finished_run(in_tmp, capsys):
    train = ["train", *SMALL, "callbacks=export_only", "callbacks.export=null"]
    assert main(train) == 0
    assert main([*train, *EARLY_STOPPING]) == 2
    assert "contains a run of another config" in capsys.readouterr().err
    assert main([*train, *EARLY_STOPPING, "overwrite=true"]) == 0
    assert main([*train, *EARLY_STOPPING, "+callbacks.early_stopping.patience=1"]) == 2


def test_other_data_are_not_resumed(work, capsys):
    run = work / "runs/synthetic"
    before = (run / "manifest.json").read_bytes()
    resume = ["train", *SMALL, "resume=true", "trainer.max_epochs=3"]
    assert main([*resume, "data.seed=5"]) == 2
    error = capsys.readouterr().err
    assert "this run was trained on other data: data.seed=5 instead of 0" in error
    assert "where: runs/synthetic" in error
    assert (run / "manifest.json").read_bytes() == before


def test_changed_images_are_not_resumed(in_tmp, capsys):
    draw = np.random.default_rng(0)
    for label in range(200):
        folder = in_tmp / f"pictures/person {label}"
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = draw.integers(0, 256, (16, 16), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    train = [
        "train", "data=image_folder", "data.root=pictures", "data.image_size=16",
        "backbone.widths=[4,4]", "embedder.embedding_dim=8", "callbacks=export_only",
        "trainer.max_epochs=1", "run_dir=run",
    ]  # fmt: skip
    assert main(train) == 0
    Image.fromarray(pixels.T.copy()).save(folder / f"{number}.png")
    assert main([*train, "resume=true", "trainer.max_epochs=2"]) == 2
    error = capsys.readouterr().err
    assert "trained on other data: its images or labels have changed since" in error


def test_a_run_resumed_for_more_epochs_is_reproduced(in_tmp, capsys):
    train = ["train", *SMALL, "logger=csv", "callbacks=export_only"]
    assert main([*train, "callbacks.last.every_n_steps=4", "+callbacks.last.stop_at_step=4"]) == 143
    assert main([*train, "resume=true", "trainer.max_epochs=3", "optimizer.lr=0.05"]) == 0
    assert main([*train, "resume=true", "trainer.max_epochs=5"]) == 0
    assert main(["lineage", "runs/synthetic"]) == 0
    text = capsys.readouterr().out
    assert "from step 0:" in text
    assert "from step 4:" in text
    assert main(["reproduce", "runs/synthetic", "--keep"]) == 0
    assert "equal" in capsys.readouterr().out
    assert main([*train, "trainer.max_epochs=5", "run_dir=at_once"]) == 0
    assert first_difference(Path("runs/synthetic"), Path("at_once")) is not None


def test_only_one_training_writes_to_a_run_folder(in_tmp, capsys):
    train = ["train", *SMALL, "callbacks=export_only", "overwrite=true"]
    process = forks.start(main, [*train, "trainer.max_epochs=1000"])
    begun = in_tmp / "runs/synthetic/.begun.json"
    forks.wait_for(begun.exists, process)
    content = begun.read_bytes()
    Path("link").symlink_to("runs/synthetic")
    for run_dir in ("runs/synthetic", "link"):
        assert main([*train, f"run_dir={run_dir}"]) == 1
        error = capsys.readouterr().err
        holder = f"process {process.pid} on {socket.gethostname()}"
        assert f"{holder} is training in this folder" in error
    assert begun.read_bytes() == content
    process.kill()
    process.join()
    assert main(train) == 0
    assert sorted(path.name for path in (in_tmp / "runs").iterdir()) == ["synthetic"]
