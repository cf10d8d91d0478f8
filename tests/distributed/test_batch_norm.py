"""Synchronised batch norm in two processes against torch's batch norm on the joined batch."""

import copy
import multiprocessing
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from arcloop.distributed.batch_norm import SynchronizedBatchNorm
from arcloop.errors import ConfigError

ROWS = (3, 5)
"""Rows of each process: batches may have different sizes."""
LAYERS = {
    "1d": (nn.BatchNorm1d(4), (4,)),
    "2d": (nn.BatchNorm2d(4), (4, 3, 2)),
    "not affine, cumulative": (nn.BatchNorm2d(4, affine=False, momentum=None), (4, 3, 2)),
    "without running statistics": (nn.BatchNorm1d(4, track_running_stats=False), (4,)),
}


class BatchNormAct2d(nn.BatchNorm2d):
    """Has the structure of timm's layer of this name: batch norm, dropout and activation."""

    def __init__(self, num_features):
        super().__init__(num_features)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


LAYERS["with activation"] = (BatchNormAct2d(4), (4, 3, 2))


def run(layer, x, weight):
    """Two training steps; returns the output, the gradients and the buffers."""
    for _ in range(2):
        x = x.detach().requires_grad_()
        layer.zero_grad()
        output = layer(x)
        (output * weight).sum().backward()
    gradients = [p.grad for p in layer.parameters()]
    return SimpleNamespace(
        output=output.detach(), x=x.grad, gradients=gradients, buffers=list(layer.buffers())
    )


def inputs(shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(ROWS), *shape, generator=generator, dtype=torch.float32)
    return 3 * x + 1, torch.randn(x.shape, generator=generator)


def train_rank(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    own = slice(sum(ROWS[:rank]), sum(ROWS[: rank + 1]))
    found = {}
    for name, (layer, shape) in LAYERS.items():
        x, weight = inputs(shape)
        model = SynchronizedBatchNorm().apply(copy.deepcopy(layer))
        # A deep copy must normalise with its own parameters and buffers.
        found[name] = run(copy.deepcopy(model), x[own], weight[own])
        model.eval()
        assert torch.equal(model(x), copy.deepcopy(layer).eval()(x))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=train_rank, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.skipif(sys.platform != "linux", reason="the processes are forks")
@pytest.mark.parametrize("name", LAYERS)
def test_two_processes_normalise_by_the_joined_batch(found, name):
    layer, shape = LAYERS[name]
    expected = run(copy.deepcopy(layer), *inputs(shape))
    first, second = (ranks[name] for ranks in found)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([first.output, second.output]), expected.output, **close)
    torch.testing.assert_close(torch.cat([first.x, second.x]), expected.x, **close)
    for own, other, whole in zip(
        first.gradients, second.gradients, expected.gradients, strict=True
    ):
        torch.testing.assert_close(own + other, whole, **close)
    for ranks in (first, second):
        torch.testing.assert_close(ranks.buffers, expected.buffers, **close)


def test_revert_restores_a_model_that_can_be_scripted():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    plugin = SynchronizedBatchNorm()
    reverted = plugin.revert(copy.deepcopy(plugin.apply(model)))
    assert "forward" not in vars(reverted[1])
    torch.jit.script(reverted)


def test_a_batch_norm_with_its_own_forward_is_refused():
    class Custom(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1

    with pytest.raises(ConfigError, match="type Custom cannot be synchronised"):
        SynchronizedBatchNorm().apply(nn.Sequential(Custom(4)))
