"""A run that is killed at any point and resumed writes the same bytes as an uninterrupted run."""

import os
import random
import signal
import subprocess
import sys

import pytest
import torch
from tests.conftest import SMALL

from arcloop.cli.main import main
from arcloop.config.composition import compose_config, to_plain
from arcloop.errors import ArtifactError, ConfigError
from arcloop.models.checkpoints import AtomicCheckpointIO, read_checkpoint
from arcloop.training.resume import find_checkpoint, find_start, run_identity

OVERRIDES = [
    "data=synthetic", "data.train=130", "data.val=30", "data.gallery=30", "data.query=20",
    "data.num_classes=3", "data.image_size=16", "data.noise=1.0", "data.shard_rows=64",
    "loader.batch_size=10", "trainer.max_epochs=4", "trainer.log_every_n_steps=3",
    "backbone.widths=[4,4]", "embedder.embedding_dim=8", "embedder.dropout=0.2",
    "callbacks.last.every_n_steps=2", "evaluate.gate.min_top1=null",
]  # fmt: skip
STEPS = 4 * 13

# One interpreter imports all packages; each training process is a fork of it.
STARTS = """
import os, sys
import arcloop.training, arcloop.pipeline.steps, arcloop.evaluation
from arcloop.cli.main import main
for line in sys.stdin:
    kill, *arguments = line.rstrip("\\n").split("\\t")
    pid = os.fork()
    if pid == 0:
        if kill:
            import killing
            killing.at(kill)
        os.dup2(2, 1)
        os._exit(main(arguments))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
KILLING = """
import os, signal
from pytorch_lightning import Callback, Trainer
from arcloop.artifacts.atomic import temporary_sibling
from arcloop.models import checkpoints

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def at(place):
    hook, step = place.split("@")
    if hook == "replace":  # while a checkpoint is written
        def write_bytes(path, content, real=checkpoints.write_bytes):
            if steps_done() >= int(step):
                temporary_sibling(path).write_bytes(content[:1000])
                die()
            real(path, content)
        checkpoints.write_bytes = write_bytes
        hook = "on_train_start"
        def act(self, trainer, *_):
            global steps_done
            steps_done = lambda: trainer.global_step
    else:
        def act(self, trainer, *_):
            if trainer.global_step >= int(step):
                die()
    real_init = Trainer.__init__
    killer = type("Killer", (Callback,), {hook: act})()
    def init(self, *args, callbacks=(), **kwargs):
        real_init(self, *args, callbacks=[*callbacks, killer], **kwargs)
    Trainer.__init__ = init
"""
HOOKS = (
    "on_train_batch_start", "on_before_backward", "on_before_zero_grad", "on_train_batch_end",
    "on_validation_end", "on_train_epoch_end", "replace",
)  # fmt: skip
FILES = (
    "metrics.csv", "model.pt", "index/faiss_index.bin", "index/faiss_label.json",
    "evaluation/metrics.json",
)  # fmt: skip


@pytest.fixture
def start(tmp_path):
    (tmp_path / "killing.py").write_text(KILLING)
    process = subprocess.Popen(
        [sys.executable, "-c", STARTS], cwd=tmp_path, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )  # fmt: skip

    def call(run, kill=""):
        print(kill, "run", *OVERRIDES, f"run_dir={run}", sep="\t", file=process.stdin, flush=True)
        return int(process.stdout.readline())

    yield call
    process.communicate(timeout=60)


def test_run_killed_at_twenty_steps_ends_with_the_same_bytes(start, tmp_path):
    draw = random.Random(7)
    steps = sorted(draw.sample(range(1, STEPS), 20))
    assert start("whole") == 0
    for step in steps:
        hook = draw.choice(HOOKS)
        assert start("killed", f"{hook}@{step}") == -signal.SIGKILL, (hook, step)
    assert start("killed") == 0
    whole, killed = tmp_path / "whole", tmp_path / "killed"
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
    assert find_start(tmp_path, "a", resume="auto", overwrite=False) is None
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="do not belong to a run"):
        find_start(tmp_path, "a", resume="auto", overwrite=False)


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
