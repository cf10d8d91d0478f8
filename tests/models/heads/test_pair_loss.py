"""Losses of pytorch-metric-learning as heads, against explicit triplets and pairs."""

import functools
import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, miners

from arcloop.errors import ConfigError
from arcloop.models import PairLoss

B, D, C = 12, 5, 4


def batch():
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(B, D, generator=generator), torch.arange(B) % C


def head(loss, miner=None, memory_size=0):
    return PairLoss(embedding_dim=D, num_classes=C, loss=loss, miner=miner, memory_size=memory_size)


def distances(features):
    unit = [row / math.sqrt(float(row @ row)) for row in features.double().numpy()]
    return [[float(np.sqrt(((a - b) ** 2).sum())) for b in unit] for a in unit]


def triplets(labels):
    rows = range(len(labels))
    return [
        (a, p, n) for a in rows for p in rows for n in rows
        if a != p and labels[a] == labels[p] and labels[a] != labels[n]
    ]  # fmt: skip


def test_all_triplets_without_a_miner():
    features, labels = batch()
    apart = distances(features)
    violations = [apart[a][p] - apart[a][n] + 0.3 for a, p, n in triplets(labels.tolist())]
    positive = [v for v in violations if v > 0]
    assert 0 < len(positive) < len(violations)
    loss = head(losses.TripletMarginLoss(margin=0.3))(features, labels)
    assert loss.item() == pytest.approx(sum(positive) / len(positive), rel=1e-5)


def test_the_loss_uses_the_triplets_of_the_miner():
    """The miner selects triplets whose negative is nearer than the positive."""
    features, labels = batch()
    apart = distances(features)
    hard = [(a, p, n) for a, p, n in triplets(labels.tolist()) if apart[a][n] < apart[a][p]]
    violations = [apart[a][p] - apart[a][n] + 0.3 for a, p, n in hard]
    assert 0 < len(hard) < len(triplets(labels.tolist()))
    miner = miners.TripletMarginMiner(margin=0.3, type_of_triplets="hard")
    loss = head(losses.TripletMarginLoss(margin=0.3), miner)(features, labels)
    assert loss.item() == pytest.approx(sum(violations) / len(violations), rel=1e-5)


def test_the_gradient_equals_that_of_the_loss():
    features, labels = batch()
    (here,) = torch.autograd.grad(
        head(losses.MultiSimilarityLoss())(features.requires_grad_(), labels), features
    )
    (there,) = torch.autograd.grad(losses.MultiSimilarityLoss()(features, labels), features)
    assert there.any()
    assert torch.equal(here, there)


def test_proxies_have_the_derived_shape_and_depend_on_the_seed():
    def made(seed):
        torch.manual_seed(seed)
        return head(functools.partial(losses.ProxyAnchorLoss, margin=0.1))

    first, again, other = made(0), made(0), made(1)
    (weight,) = first.parameters()
    assert weight.shape == (C, D)
    assert torch.equal(weight, next(again.parameters()))
    assert not torch.equal(weight, next(other.parameters()))
    first(*batch()).backward()
    assert weight.grad.any()


def test_a_batch_without_a_pair_has_no_loss_and_no_gradient():
    features, _ = batch()
    features.requires_grad_()
    for loss, rows in ((losses.MultiSimilarityLoss(), 1), (losses.TripletMarginLoss(), 3)):
        value = head(loss)(features[:rows], torch.arange(rows))
        value.backward()
        assert value.item() == 0
        assert not features.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_computes_in_float32_under_autocast(dtype):
    features, labels = batch()
    pairs = head(losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner())
    narrow = features.to(dtype).requires_grad_()
    expected = pairs(features.to(dtype).float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss = pairs(narrow, labels)
    assert torch.equal(loss, expected)
    loss.backward()
    assert narrow.grad.isfinite().all()


def test_a_pair_loss_without_proxies_has_an_empty_state_dict():
    pairs = head(losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner())
    assert list(pairs.parameters()) == []
    assert pairs.state_dict() == {}
    assert pairs.warmable == frozenset()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            losses.ProxyAnchorLoss(C, D),
            "has parameters that .* would not determine.*\n.*\n.*_partial_: true",
        ),
        (
            losses.CrossBatchMemory(losses.ContrastiveLoss(), embedding_size=D),
            "CrossBatchMemory has buffers",
        ),
    ],
)
def test_losses_with_undetermined_state_are_refused(loss, message):
    with pytest.raises(ConfigError, match=message):
        head(loss)


def steps(count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        features = 3 * torch.randn(B, D, generator=generator)
        yield features, torch.randint(C, (B,), generator=generator)


MEMORY = 20  # not a multiple of the batch


@pytest.mark.parametrize(
    ("make", "miner"),
    [
        (losses.ContrastiveLoss, None),
        (losses.MultiSimilarityLoss, miners.MultiSimilarityMiner(epsilon=0.2)),
        (losses.TripletMarginLoss, None),
        (losses.TripletMarginLoss, miners.TripletMarginMiner(margin=0.3)),
    ],
)
def test_the_memory_has_the_loss_of_cross_batch_memory(make, miner):
    """Its memory contains the batch, too."""
    ours = head(make(), miner, memory_size=MEMORY)
    theirs = losses.CrossBatchMemory(make(), D, memory_size=MEMORY + B, miner=miner)
    for features, labels in steps(6):
        expected = theirs(features, labels)
        assert expected > 0
        torch.testing.assert_close(ours(features, labels), expected)


def test_loss_and_gradient_of_the_memory_equal_a_loop_over_pairs():
    """The gradient flows through both images of a pair of the batch, not into the memory."""
    ours = head(losses.ContrastiveLoss(pos_margin=0, neg_margin=1), memory_size=MEMORY)
    earlier, earlier_labels = torch.empty(0, D), []
    for features, labels in steps(4):
        features = features.requires_grad_()
        unit = torch.nn.functional.normalize(torch.cat([features, earlier]))
        of = [*labels.tolist(), *earlier_labels]
        same, different = [], []
        for a in range(B):
            for b in range(len(of)):
                apart = (unit[a] - unit[b]).norm()
                if a != b and of[a] == of[b]:
                    same.append(apart)
                elif of[a] != of[b] and apart < 1:
                    different.append(1 - apart)
        expected = torch.stack(same).mean() + torch.stack(different).mean()
        (slope,) = torch.autograd.grad(expected, features)
        loss = ours(features, labels)
        (gradient,) = torch.autograd.grad(loss, features)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6)
        earlier = torch.cat([earlier, features.detach()])[-MEMORY:]
        earlier_labels = [*earlier_labels, *labels.tolist()][-MEMORY:]
    assert torch.equal(ours.memory, earlier)
    assert ours.memory_labels.tolist() == earlier_labels


def test_a_restored_memory_continues_and_evaluation_does_not_use_it():
    ours, again = (head(losses.MultiSimilarityLoss(), memory_size=MEMORY) for _ in range(2))
    batches = list(steps(3))
    ours(*batches[0])
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again(*batches[1]), ours(*batches[1]))
    before = {name: buffer.clone() for name, buffer in ours.named_buffers()}
    alone = head(losses.MultiSimilarityLoss())(*batches[2])
    assert torch.equal(ours.eval()(*batches[2]), alone)
    assert all(torch.equal(before[name], buffer) for name, buffer in ours.named_buffers())
    assert ours.train()(*batches[2]) != alone


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_memory_is_float32_under_autocast(dtype):
    ours, wide = (head(losses.ContrastiveLoss(), memory_size=MEMORY) for _ in range(2))
    for features, labels in steps(3):
        narrow = features.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = ours(narrow, labels)
        assert torch.equal(loss, wide(narrow.detach().float(), labels))
        loss.backward()
        assert narrow.grad.isfinite().all()
    assert ours.memory.dtype == torch.float32


def test_a_memory_needs_a_loss_with_references():
    loss = functools.partial(losses.ProxyAnchorLoss, margin=0.1)
    with pytest.raises(ConfigError, match="ProxyAnchorLoss cannot compare a batch with a memory"):
        head(loss, memory_size=MEMORY)
