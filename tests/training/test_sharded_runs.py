"""Complete runs with sharded and stateful heads, resumed with a different number of processes."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests import forks
from tests.training import sharded_runs

from arcloop import artifacts
from arcloop.models.checkpoints import read_checkpoint
from arcloop.pipeline.steps import run_step
from arcloop.training.sharded import clip_gradients

CLASSES, D = 7, 16


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    forks.run(sharded_runs.main, folder)
    return folder


def curve(run: Path) -> list[float]:
    with open(run / "metrics.csv", newline="") as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]


def test_loss_equals_that_of_the_dense_head_for_changing_world_sizes(runs):
    dense, sharded = curve(runs / "dense"), curve(runs / "sharded")
    assert len(dense) == len(sharded) == 9
    assert sharded == pytest.approx(dense, rel=1e-5)
    # A head that was not restored would start with a high loss again.
    assert dense[-1] < 0.8 * dense[0]


def test_head_buffers_are_those_of_the_global_batch_for_changing_world_sizes(runs):
    # The order of summation depends on the number of processes. After six steps in float32, the
    # losses differ by up to 4e-6, depending on the instruction set.
    assert curve(runs / "stateful") == pytest.approx(curve(runs / "stateful_one_process"), rel=1e-4)
    for epoch in (1, 2):
        several, one = (
            read_checkpoint(runs / f"{name}-{epoch}.ckpt")["state_dict"]
            for name in ("stateful", "stateful_one_process")
        )
        for name in ("head.length_mean", "head.length_std"):
            assert several[name].item() == pytest.approx(one[name].item(), rel=1e-4)


def test_hard_classes_and_margins_by_size_do_not_depend_on_the_processes(runs):
    for epoch in (1, 2):
        several, one = (
            read_checkpoint(runs / f"{name}-{epoch}.ckpt") for name in ("hard", "hard_one_process")
        )
        assert several.get("EmbeddingDataModule", {}).keys() == (
            {"epoch", "classes"} if epoch == 2 else set()
        )
        if epoch == 2:
            mined = several["EmbeddingDataModule"]["classes"]
            assert torch.equal(mined, one["EmbeddingDataModule"]["classes"])
            assert len(mined) == 3 * 4  # batches x classes
    assert curve(runs / "hard") == pytest.approx(curve(runs / "hard_one_process"), rel=1e-4)


def test_runs_are_complete(runs):
    run = artifacts.load(runs / "sharded", "run")
    assert 0 < run.info["objective"] <= 1
    artifacts.load(runs / "sharded/evaluation", "evaluation")
    artifacts.load(runs / "sampled", "run")


def test_evaluation_of_three_processes_equals_that_of_one(runs, tmp_path):
    """Three processes with at most three batches each evaluated `runs/sharded`."""
    run, kinds = runs / "sharded", {"embed": "gallery", "index": "index", "evaluate": "evaluation"}
    inputs = {"run": run, "store": runs / "store"}
    overrides = artifacts.load(run, "run").info["overrides"]
    for step, kind in kinds.items():
        run_step(step, overrides, inputs, tmp_path / kind)
        inputs[kind] = tmp_path / kind
    # Each process writes gallery files of its own, so only the joined rows are the same.
    for name in ("embeddings", "labels"):
        joined = [
            np.concatenate([np.load(file) for file in sorted(folder.glob(f"{name}-*.npy"))])
            for folder in (run / "gallery", tmp_path / "gallery")
        ]
        assert np.array_equal(*joined)
    same = ["index/faiss_index.bin", "index/faiss_label.json", "evaluation/metrics.json",
            "evaluation/roc.csv", "evaluation/projection.png"]  # fmt: skip
    assert [n for n in same if (run / n).read_bytes() != (tmp_path / n).read_bytes()] == []


@pytest.mark.parametrize("name", ["dense-1", "sharded-1", "sharded-2", "sharded-3", "sampled-2"])
def test_checkpoint_contains_the_full_head_and_its_optimizer_state(runs, name):
    checkpoint = read_checkpoint(runs / f"{name}.ckpt")
    (optimizer,) = checkpoint["optimizer_states"]
    (group,) = [g for g in optimizer["param_groups"] if g["name"] == "head"]
    state = optimizer["state"][group["params"][0]]
    by_class = [v for v in state.values() if v.ndim == 2]
    assert len(by_class) == (2 if name.startswith("sampled") else 1)
    for tensor in (checkpoint["state_dict"]["head.weight"], *by_class):
        assert tensor.shape == (CLASSES, D)
        assert tensor.isfinite().all()
        assert tensor.any(dim=1).all()
        assert len(tensor.unique(dim=0)) == CLASSES


def test_clipping_by_value_clips_sparse_gradients():
    weight, other = (torch.nn.Parameter(torch.zeros(4, 2)) for _ in range(2))
    rows = torch.tensor([[1, 3, 1]])
    values = torch.tensor([[3.0, -1.0], [-5.0, 0.5], [1.0, -1.0]])
    weight.grad = torch.sparse_coo_tensor(rows, values, (4, 2), check_invariants=False)
    other.grad = torch.full((4, 2), -3.0)
    optimizer = torch.optim.SGD([weight, other], lr=0.1)
    clip_gradients(optimizer, SimpleNamespace(weight=weight), 1.5, by_value=True)
    assert weight.grad.to_dense().tolist() == [[0, 0], [1.5, -1.5], [0, 0], [-1.5, 0.5]]
    assert other.grad.tolist() == [[-1.5, -1.5]] * 4
