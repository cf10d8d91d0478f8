"""Two processes with half a batch each give the results of one process with the batch."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HEADS = (
    "adacos", "curricularface", "adaface", "magface", "sub-center", "pair loss", "triplets",
    "memory", "by size", "proxies",
)  # fmt: skip
BUFFERS = {
    "adacos": ["scale"], "curricularface": ["t"], "adaface": ["length_mean", "length_std"],
    "memory": ["memory"],
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Results of two processes, and of one process."""
    folder = tmp_path_factory.mktemp("processes")
    script = Path(__file__).with_name("heads_in_processes.py")
    subprocess.run([sys.executable, "-W", "error", script, folder], check=True, timeout=120)
    first, second, alone = (torch.load(folder / f"{n}.pt") for n in ("2-0", "2-1", "1-0"))
    return (first, second), alone


@pytest.mark.parametrize("head", HEADS)
def test_loss_weights_and_statistics_equal_those_of_one_process(found, head):
    (first, second), alone = found
    close = {"rtol": 1e-9, "atol": 1e-11}
    for one, other, whole in zip(first[head], second[head], alone[head], strict=True):
        loss = (one["loss"] + other["loss"]) / 2
        torch.testing.assert_close(loss, whole["loss"], **close)
        for name in whole.keys() - {"loss"}:
            assert torch.equal(one[name], other[name])
            torch.testing.assert_close(one[name], whole[name], **close)


@pytest.mark.parametrize("head", BUFFERS)
def test_statistics_change(found, head):
    steps = found[1][head]
    for name in BUFFERS[head]:
        assert len({step[f"head.{name}"].sum().item() for step in steps}) == len(steps)


@pytest.mark.parametrize("head", HEADS)
def test_every_step_changes_the_weights(found, head):
    steps = found[1][head]
    for before, after in itertools.pairwise(steps):
        weights = [name for name in before if name.endswith(("weight", "proxies"))]
        assert weights
        assert not any(torch.equal(before[name], after[name]) for name in weights)
