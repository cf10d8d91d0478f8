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


def head(loss, miner=None):
    return PairLoss(embedding_dim=D, num_classes=C, loss=loss, miner=miner)


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
