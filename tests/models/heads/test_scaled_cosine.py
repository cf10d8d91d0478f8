"""`scaled_cosine` is bit-equal to torch's own normalisation, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from arcloop.models.heads.cosine_classifier import scaled_cosine


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 3, 5), (64, 10, 128), (33, 1000, 512)])
def test_value_and_gradients_equal_those_of_torch(dtype, shape):
    batch, classes, dim = shape
    torch.manual_seed(0)
    features, weight = torch.randn(batch, dim, dtype=dtype), torch.randn(classes, dim)
    features[0] = weight[0] = 0  # zero vectors have no direction
    found = []
    for ours in (True, False):
        x, w = features.clone().requires_grad_(), weight.clone().requires_grad_()
        if ours:
            logits = scaled_cosine(x, w, 32.0)
        else:
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            logits = F.linear(32.0 * F.normalize(x.to(wide)), F.normalize(w.to(wide)))
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
        found.append((logits.detach(), x.grad, w.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_autocast_changes_nothing():
    torch.manual_seed(0)
    features, weight = torch.randn(8, 16), torch.randn(4, 16)
    outside = scaled_cosine(features, weight, 64.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scaled_cosine(features, weight, 64.0), outside)
