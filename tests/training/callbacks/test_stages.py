"""A frozen backbone does not change; after unfreezing it is trained."""

import csv
from pathlib import Path

import pytest
import torch
from tests import forks
from tests.conftest import SMALL
from tests.training import freezing_runs

from arcloop.cli.main import main
from arcloop.errors import ResourceError
from arcloop.models.checkpoints import read_checkpoint
from arcloop.training.module import EmbeddingModule

# 6 steps per epoch. The tests compare the last weights, not those of the best epoch.
FREEZE = [
    "train", *SMALL, "callbacks=freeze", "callbacks.export=null", "callbacks.build_index=null",
    "callbacks.evaluate=null", "callbacks.tensorboard=null", "callbacks.last.every_n_steps=2",
    "embedder.dropout=0.2",
]  # fmt: skip
STEPS = 6


def last(run: str) -> dict:
    return read_checkpoint(Path(run) / "checkpoints/last.ckpt")


def backbone(run: str) -> dict[str, torch.Tensor]:
    weights = last(run)["state_dict"].items()
    return {name: w for name, w in weights if name.startswith("embedder.backbone.")}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[bool]:
    assert one.keys() == other.keys()
    return [torch.equal(one[name], other[name]) for name in one]


@pytest.fixture
def start(in_tmp, monkeypatch) -> dict[str, torch.Tensor]:
    """Record the weights of the backbone before the first step."""
    first = {}

    def on_fit_start(self: EmbeddingModule) -> None:
        first.update({f"embedder.backbone.{n}": w.clone() for n, w in
                      self.embedder.backbone.state_dict().items()})  # fmt: skip

    monkeypatch.setattr(EmbeddingModule, "on_fit_start", on_fit_start)
    return first


def test_frozen_backbone_is_constant_and_unfrozen_backbone_is_trained(start, capsys):
    """Weight decay, momentum or batch-norm statistics could change a frozen backbone."""
    frozen_run = [*FREEZE, "optimizer=adamw", "run_dir=frozen"]
    assert main([*frozen_run, "callbacks.freeze.epochs=2"]) == 0
    assert all(same(backbone("frozen"), start))
    frozen = last("frozen")
    # The optimizer state of the backbone is created after unfreezing.
    trained = sum(len(g["params"]) for g in frozen["optimizer_states"][0]["param_groups"])
    assert len(frozen["optimizer_states"][0]["state"]) < trained
    assert frozen["state_dict"]["embedder.neck.0.num_batches_tracked"] == 2 * STEPS

    assert main([*frozen_run, "callbacks.freeze.epochs=1"]) == 2
    assert "another config" in capsys.readouterr().err

    assert main([*FREEZE, "run_dir=freed", "callbacks.freeze.epochs=1"]) == 0
    freed = backbone("freed")
    changed = [name for name, equal in zip(start, same(freed, start), strict=True) if not equal]
    assert {n for n in start if "running_" in n or n.endswith("weight")} <= set(changed)
    assert freed["embedder.backbone.stages.0.2.num_batches_tracked"] == STEPS


def test_interrupted_run_ends_with_the_same_bytes(in_tmp, monkeypatch):
    assert main([*FREEZE, "run_dir=whole"]) == 0
    real = EmbeddingModule.training_step
    for step in (3, 9):  # within the frozen and within the unfrozen epoch

        def training_step(self, batch, batch_idx, step=step):
            if self.global_step == step:
                raise ResourceError("interrupted")
            return real(self, batch, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(EmbeddingModule, "training_step", training_step)
            assert main([*FREEZE, "run_dir=stopped"]) == 1
        assert last("stopped")["global_step"] == step - 1
    assert main([*FREEZE, "run_dir=stopped"]) == 0
    assert Path("whole/metrics.csv").read_bytes() == Path("stopped/metrics.csv").read_bytes()
    assert all(same(last("whole")["state_dict"], last("stopped")["state_dict"]))


def test_average_of_a_frozen_backbone_is_constant(start):
    ema = ["+callbacks.ema._target_=pytorch_lightning.callbacks.EMAWeightAveraging",
           "+callbacks.ema.decay=0.5"]  # fmt: skip
    assert main([*FREEZE, *ema, "run_dir=averaged", "callbacks.freeze.epochs=2"]) == 0
    for name, value in backbone("averaged").items():
        torch.testing.assert_close(value, start[name], rtol=1e-6, atol=0)


def test_epochs_out_of_range_are_named(in_tmp, capsys):
    assert main([*FREEZE, "callbacks.freeze.epochs=0"]) == 2
    assert "callbacks.freeze.epochs=0 must be greater than or equal to 1" in capsys.readouterr().err


def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    forks.run(freezing_runs.main, tmp_path)

    def curve(run: str) -> list[float]:
        with open(tmp_path / run / "metrics.csv", newline="") as file:
            return [float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]

    one, two = curve("in-1"), curve("in-2")
    assert len(one) == 9
    assert two == pytest.approx(one, rel=1e-3)
    one, two = (read_checkpoint(tmp_path / r / "checkpoints/last.ckpt") for r in ("in-1", "in-2"))
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=5e-2, atol=2e-3)
