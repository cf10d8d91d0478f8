"""A head sharded over processes against one float64 matrix, computed with acos and logarithms."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.heads.oracle import ONE_MARGIN
from torch import Tensor, nn

from arcloop.errors import ConfigError
from arcloop.models import ArcFace, ShardedArcFace
from arcloop.models.heads.sharded_arcface import randn_rows

WORLDS = (4, 3, 1)
N, INPUTS, D = 12, 6, 5
CLASSES = {"many": 23, "few": 3, "float32": 23}
SCALE, MARGIN, LIMIT = 16.0, 0.4, 0.5
SIZE_MARGIN = {23: 0.5, 3: 0.0}
RESUMED = [(name, rate) for name in ("sgd", "adamw") for rate in (1.0, 0.3)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """World size -> results of each rank."""
    folder = tmp_path_factory.mktemp("processes")
    script = Path(__file__).with_name("sharded_processes.py")
    subprocess.run([sys.executable, "-W", "error", script, folder], check=True, timeout=120)
    return {
        world: [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]
        for world in WORLDS
    }


def dense(num_classes: int) -> tuple[nn.Linear, ArcFace]:
    """An embedder and a dense head with the initial weights of the processes."""
    torch.manual_seed(7)
    embedder = nn.Linear(INPUTS, D, bias=False)
    head = ArcFace(
        embedding_dim=D,
        num_classes=num_classes,
        scale=SCALE,
        margin=MARGIN,
        easy_margin=False,
        **ONE_MARGIN,
    )
    return embedder, head


def batch(num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N, INPUTS, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(num_classes, (N,), generator=generator)


def oracle(num_classes: int, rows: Tensor | None = None, seed: int = 0, with_margin: bool = True):
    """Losses of all N images, and the gradients of their mean, with only the classes `rows`."""
    embedder, head = dense(num_classes)
    kernel = embedder.weight.detach().double().requires_grad_()
    weight = head.weight.detach().double().requires_grad_()
    rows = torch.arange(num_classes) if rows is None else rows
    inputs, labels = batch(num_classes, seed)
    losses = []
    for features, label in zip(inputs @ kernel.T, labels, strict=True):
        angles = torch.stack(
            [torch.acos(torch.dot(features, w) / features.norm() / w.norm()) for w in weight[rows]]
        )
        is_target = rows == label
        margin = MARGIN + SIZE_MARGIN[num_classes] * max(int(label), 1) ** -0.25
        margin = float(np.float32(margin)) if SIZE_MARGIN[num_classes] else margin
        margin *= with_margin
        assert is_target.sum() == 1
        moved = torch.where(
            angles < math.pi - margin, (angles + margin).cos(),
            angles.cos() - margin * math.sin(margin),
        )  # fmt: skip
        logits = SCALE * torch.where(is_target, moved, angles.cos())
        losses.append(-(logits[is_target][0] - logits.exp().sum().log()))
    losses = torch.stack(losses)
    losses.mean().backward()
    return losses.detach(), kernel.grad, weight.grad


def whole(parts: list, name: str) -> Tensor:
    """The concatenated shards of all ranks."""
    return torch.cat([p[name].to_dense() for p in parts])


def per_rank(losses: Tensor, world: int) -> Tensor:
    return losses.view(world, -1).mean(dim=1)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", CLASSES)
def test_loss_and_gradients_equal_those_of_one_matrix(found, world, case):
    parts = [f[case] for f in found[world]]
    losses, kernel_grad, weight_grad = oracle(CLASSES[case])
    close = {"rtol": 1e-5, "atol": 1e-5} if case == "float32" else {"rtol": 1e-9, "atol": 1e-10}
    assert_close = torch.testing.assert_close
    loss = torch.stack([p["loss"] for p in parts])
    assert_close(loss.double(), per_rank(losses, world), **close)
    for p in parts:
        assert_close(p["embedder_grad"].double(), kernel_grad, **close)
    assert_close(whole(parts, "weight_grad").double(), weight_grad, **close)
    plain, *_ = oracle(CLASSES[case], with_margin=False)
    loss = torch.stack([p["loss_without_margin"] for p in parts])
    assert_close(loss.double(), per_rank(plain, world), **close)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", ["many", "few"])
def test_initial_weights_equal_those_of_the_dense_head(found, world, case):
    parts = [f[case] for f in found[world]]
    expected = dense(CLASSES[case])[1].weight
    assert torch.equal(whole(parts, "weight").float(), expected)
    bounds = [p["classes"] for p in parts]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == len(expected)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(bounds))
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) - min(sizes) <= 1


def sampled_rows(parts: list) -> list[Tensor]:
    """Classes that each rank sampled, as indices into all classes."""
    return [p["classes"][0] + p["weight_grad"].coalesce().indices()[0] for p in parts]


@pytest.mark.parametrize("world", WORLDS)
def test_a_sampled_step_uses_only_the_sampled_classes(found, world):
    for number, step in enumerate((0, 1)):
        parts = [f["sampled"][number] for f in found[world]]
        assert all(p["weight_grad"].is_sparse for p in parts)
        rows = torch.cat(sampled_rows(parts))
        losses, kernel_grad, weight_grad = oracle(CLASSES["many"], rows, step)
        loss = torch.stack([p["loss"] for p in parts])
        close = {"rtol": 1e-9, "atol": 1e-10}
        torch.testing.assert_close(loss, per_rank(losses, world), **close)
        for p in parts:
            torch.testing.assert_close(p["embedder_grad"], kernel_grad, **close)
        torch.testing.assert_close(whole(parts, "weight_grad"), weight_grad, **close)


@pytest.mark.parametrize("world", WORLDS)
def test_a_sample_has_all_targets_and_the_requested_size(found, world):
    for number, step in enumerate((0, 1)):
        parts = [f["sampled"][number] for f in found[world]]
        targets = set(batch(CLASSES["many"], step)[1].tolist())
        for p, rows in zip(parts, sampled_rows(parts), strict=True):
            start, stop = p["classes"]
            own_targets = {t for t in targets if start <= t < stop}
            assert own_targets <= set(rows.tolist())
            assert len(rows) == max(len(own_targets), round(0.4 * (stop - start)))
    few = [f["sampled few"] for f in found[world]]
    assert set(batch(3, 0)[1].tolist()) <= set(torch.cat(sampled_rows(few)).tolist())


def test_a_sample_is_a_function_of_the_step():
    head = ShardedArcFace(
        embedding_dim=4, num_classes=1000, scale=8.0, margin=0.2, easy_margin=False, **ONE_MARGIN,
        sample_rate=0.1,
    )  # fmt: skip
    head.initialize_shard()
    features, labels = torch.randn(3, 4), torch.tensor([5, 500, 5])

    def sample(seed: int, step: int) -> tuple[int, ...]:
        head.set_step(seed, step)
        torch.rand(3)  # the global generator has no influence
        (grad,) = torch.autograd.grad(head(features, labels), head.weight)
        return tuple(grad.coalesce().indices()[0].tolist())

    samples = [sample(0, step) for step in range(20)]
    assert len(set(samples)) == 20
    assert [sample(0, step) for step in range(20)] == samples
    assert sample(1, 0) != sample(0, 0)
    assert all(len(s) == 100 and {5, 500} <= set(s) for s in samples)
    # Every class is sampled at some time: 98 of 998 others in each of 20 steps.
    expected = 998 * (1 - 98 / 998) ** 20
    assert abs(1000 - len(set().union(*samples)) - expected) < 60


@pytest.mark.parametrize("world", WORLDS)
def test_the_head_computes_in_float32_under_autocast(found, world):
    for f in found[world]:
        under_autocast, of_floats = f["narrow"]
        assert under_autocast.dtype == torch.float32
        assert torch.equal(under_autocast, of_floats)


@pytest.mark.parametrize("world", WORLDS)
def test_clipping_by_norm_includes_all_shards_and_other_weights_once(found, world):
    for number in range(2):
        before = [f["clipped"][number][0] for f in found[world]]
        after = [f["clipped"][number][1] for f in found[world]]
        norm = math.sqrt(
            before[0][0].square().sum() + sum(shard.square().sum() for _, shard in before)
        )
        assert norm > 2 * LIMIT
        for old, new in zip(before, after, strict=True):
            for x, y in zip(old, new, strict=True):
                torch.testing.assert_close(y, x * LIMIT / norm, rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("world", WORLDS[1:])
def test_a_checkpoint_of_four_processes_loads_on_any_number(found, world, case):
    four = found[4][0]["carried over"][case]
    other = found[world][0]["carried over"][case]
    assert four["saved"]["state_dict"]["head.weight"].shape == (CLASSES["many"], D)
    assert_equal(four["saved"], other["saved"])
    if case[1] == 1.0:  # a sample depends on the number of processes
        assert_equal(four["gone_on"], other["gone_on"], rtol=1e-9, atol=1e-12)


def assert_equal(first: object, second: object, **tolerance: float) -> None:
    if isinstance(first, Tensor):
        assert isinstance(second, Tensor)
        torch.testing.assert_close(second, first, **(tolerance or {"rtol": 0, "atol": 0}))
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert_equal(value, second[key], **tolerance)
    elif isinstance(first, list):
        for pair in zip(first, second, strict=True):
            assert_equal(*pair, **tolerance)
    else:
        assert first == second


def test_training_changes_the_weights_and_the_optimizer_state(found):
    for case in RESUMED:
        carried = found[4][0]["carried over"][case]
        state = carried["saved"]["optimizer_states"][0]["state"][1]
        names = {"sgd": ["momentum_buffer"], "adamw": ["exp_avg", "exp_avg_sq"]}[case[0]]
        for name in names:
            assert state[name].shape == (CLASSES["many"], D)
            assert state[name].any(dim=1).sum() > CLASSES["many"] / 2
        first = dense(CLASSES["many"])[1].weight.double()
        assert not torch.equal(carried["saved"]["state_dict"]["head.weight"], first)


@pytest.mark.parametrize(("total", "width"), [(3, 5), (33, 5), (4001, 16), (5000, 700)])
def test_randn_rows_equal_those_of_the_whole_matrix(total, width):
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    expected = torch.randn(total, width, generator=generator())
    for rows in (range(total), range(total // 3, total // 2), range(total - 1, total), range(0)):
        drawn = randn_rows(generator(), rows, total, width)
        assert torch.equal(drawn, expected[rows.start : rows.stop])


@pytest.mark.parametrize("rate", [0.0, 1.1, "all"])
def test_errors_name_a_sample_rate_out_of_range(rate):
    with pytest.raises(ConfigError, match=r"head\.sample_rate="):
        ShardedArcFace(
            embedding_dim=D, num_classes=3, scale=8.0, margin=0.2, easy_margin=False, **ONE_MARGIN,
            sample_rate=rate,
        )  # fmt: skip


def test_a_label_out_of_range_gives_an_infinite_loss():
    head = ShardedArcFace(
        embedding_dim=D,
        num_classes=3,
        scale=8.0,
        margin=0.2,
        easy_margin=False,
        **ONE_MARGIN,
        sample_rate=1.0,
    )
    head.initialize_shard()
    assert head(torch.randn(2, D), torch.tensor([0, 3])).item() == math.inf
