"""ArcFace against the equation of the paper: acos, add the margin, cos, over a one-hot matrix."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.heads.oracle import ONE_MARGIN
from torch import Tensor

from arcloop.errors import ConfigError
from arcloop.models.heads.arcface import ArcFace, cos_with_margin
from arcloop.models.heads.cosine_classifier import change_targets, scaled_cosine

B, D, C = 12, 5, 7


def make_head(margin: float = 0.5, scale: float = 30.0, easy_margin: bool = False) -> ArcFace:
    return ArcFace(
        embedding_dim=D,
        num_classes=C,
        margin=margin,
        scale=scale,
        easy_margin=easy_margin,
        **ONE_MARGIN,
    )


def make_batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features_BD = 3 * torch.randn(B, D, generator=generator)
    return features_BD, torch.randint(C, (B,), generator=generator)


def oracle_target(angle: Tensor, margin: float, easy_margin: bool) -> Tensor:
    if easy_margin:
        return torch.where(angle < math.pi / 2, torch.cos(angle + margin), torch.cos(angle))
    return torch.where(
        angle < math.pi - margin,
        torch.cos(angle + margin),
        torch.cos(angle) - margin * math.sin(math.pi - margin),
    )


def oracle_logits(head: ArcFace, features_BD: Tensor, labels_B: Tensor) -> Tensor:
    features = features_BD.double()
    weight = head.weight.detach().double()
    norms = features.norm(dim=1)[:, None] * weight.norm(dim=1)[None]
    angle_BC = torch.acos(((features @ weight.T) / norms).clamp(-1, 1))
    moved_BC = oracle_target(angle_BC, head.margin, head.easy_margin)
    return head.scale * torch.where(
        F.one_hot(labels_B, len(weight)).bool(), moved_BC, angle_BC.cos()
    )


def oracle_loss(head: ArcFace, features_BD: Tensor, labels_B: Tensor) -> float:
    losses = []
    for row, label in zip(
        oracle_logits(head, features_BD, labels_B).tolist(), labels_B.tolist(), strict=True
    ):
        top = max(row)
        losses.append(math.log(sum(math.exp(v - top) for v in row)) + top - row[label])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("easy_margin", [False, True])
@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5, 1.5, 3.0])
@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_logits_and_loss_equal_the_oracle(margin: float, scale: float, easy_margin: bool) -> None:
    torch.manual_seed(0)
    head = make_head(margin, scale, easy_margin)
    features_BD, labels_B = make_batch(1)
    expected_BC = oracle_logits(head, features_BD, labels_B)
    torch.testing.assert_close(
        head.logits(features_BD, labels_B).double(), expected_BC, rtol=1e-5, atol=1e-5 * scale
    )
    assert head(features_BD, labels_B).item() == pytest.approx(
        oracle_loss(head, features_BD, labels_B), rel=1e-5, abs=1e-5
    )


@pytest.mark.parametrize("easy_margin", [False, True])
def test_gradients_equal_finite_differences(easy_margin: bool) -> None:
    torch.manual_seed(0)
    head = make_head(easy_margin=easy_margin, scale=8.0).double()
    features_BD, labels_B = make_batch(2)

    def loss(features_BD: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(head, {"weight": weight}, (features_BD, labels_B))

    weight = head.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, (features_BD.double().requires_grad_(), weight))


@settings(deadline=None)
@given(cos=st.floats(-1, 1), margin=st.floats(0, 3.1), easy_margin=st.booleans())
def test_target_equals_the_oracle_at_any_angle(
    cos: float, margin: float, easy_margin: bool
) -> None:
    switch = 0.0 if easy_margin else -math.cos(margin)
    if abs(cos - switch) < 1e-9 and cos != switch:
        return  # rounding decides on which side of the threshold the angle is
    result = cos_with_margin(
        torch.tensor(cos, dtype=torch.float64), margin, easy_margin=easy_margin
    ).item()
    if cos == switch:
        expected = cos if easy_margin else cos - margin * math.sin(margin)
    elif cos > switch:
        expected = math.cos(math.acos(cos) + margin)
    else:
        expected = cos if easy_margin else cos - margin * math.sin(math.pi - margin)
    assert result == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.5, 2.33])
def test_target_decreases_as_the_angle_grows(margin: float) -> None:
    angle = torch.linspace(0, math.pi, 10_001, dtype=torch.float64)
    target = cos_with_margin(angle.cos(), margin, easy_margin=False)
    assert (target.diff() < 0).all()
    assert (target < angle.cos()).all()


@pytest.mark.parametrize("easy_margin", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0, 3.0])
def test_target_and_gradient_at_the_corners(
    margin: float, dtype: torch.dtype, easy_margin: bool
) -> None:
    one = torch.tensor(1.0, dtype=dtype)
    switch = torch.tensor(-math.cos(margin), dtype=dtype)
    neighbours = [torch.nextafter(one, -one), torch.nextafter(-one, one)]
    neighbours += [torch.nextafter(switch, one), torch.nextafter(switch, -one)]
    cos = torch.stack([one, -one, 0 * one, switch, *neighbours]).requires_grad_()
    target = cos_with_margin(cos, margin, easy_margin=easy_margin)
    expected = -1.0 if easy_margin else -1.0 - margin * math.sin(margin)
    assert target[0].item() == pytest.approx(math.cos(margin), rel=1e-6)
    assert target[1].item() == pytest.approx(-1.0 if margin == 0.0 else expected, rel=1e-6)
    (gradient,) = torch.autograd.grad(target.sum(), cos)
    assert target.isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient >= min(0.0, math.cos(margin))).all()
    assert gradient.max() < 1 / torch.finfo(dtype).eps ** 0.5


def test_insightface_has_the_same_loss_and_another_gradient() -> None:
    """It adds the margin without a gradient, so the target logit has the gradient of s·cos θ."""
    head = make_head().double()
    features_BD, labels_B = make_batch(3)
    rows_B = torch.arange(B)
    cos_BC = (scaled_cosine(features_BD.double(), head.weight, 1.0)).detach()
    angle_B = cos_BC[rows_B, labels_B].acos()
    assert (angle_B < math.pi - head.margin).all()  # where both define the same target

    ours_BC = cos_BC.clone().requires_grad_()
    logits_BC = head.scale * ours_BC
    change_targets(logits_BC, head.scale, labels_B, lambda c: head.with_margin(c, labels_B))
    ours = F.cross_entropy(logits_BC, labels_B)
    theirs_BC = cos_BC.clone().requires_grad_()
    offset_BC = torch.zeros_like(cos_BC)
    offset_BC[rows_B, labels_B] = (angle_B + head.margin).cos() - angle_B.cos()
    theirs = F.cross_entropy(head.scale * (theirs_BC + offset_BC), labels_B)
    assert ours.item() == pytest.approx(head(features_BD.double(), labels_B).item(), rel=1e-12)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)

    (gradient_BC,) = torch.autograd.grad(ours, ours_BC)
    (expected_BC,) = torch.autograd.grad(theirs, theirs_BC)
    # docs/heads.md states this factor.
    expected_BC[rows_B, labels_B] *= (angle_B + head.margin).sin() / angle_B.sin()
    torch.testing.assert_close(gradient_BC, expected_BC, rtol=1e-12, atol=1e-15)


def corner_batch(head: ArcFace) -> tuple[Tensor, Tensor]:
    """Features parallel, opposite and orthogonal to their class, and at the threshold."""
    with torch.no_grad():
        head.weight.zero_()
        head.weight[:, 0] = 2.0
    along = torch.zeros(4, D)
    along[0, 0], along[1, 0], along[2, 1] = 4.0, -4.0, 4.0
    along[3, 0], along[3, 1] = -math.cos(head.margin), math.sin(head.margin)
    return along, torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("easy_margin", [False, True])
def test_corners_are_finite_in_every_precision(dtype: torch.dtype, easy_margin: bool) -> None:
    head = make_head(easy_margin=easy_margin, scale=64.0)
    features_BD, labels_B = corner_batch(head)
    features_BD = features_BD.to(dtype).requires_grad_()
    loss = head(features_BD, labels_B)
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.isfinite()
    assert features_BD.grad is not None
    assert head.weight.grad is not None
    assert features_BD.grad.dtype == dtype
    assert features_BD.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = make_head(scale=64.0)
    features_BD, labels_B = make_batch(3)
    expected = head(features_BD, labels_B), head.scaled_cosine(features_BD)
    with torch.autocast("cpu", dtype):
        assert torch.equal(head(features_BD, labels_B), expected[0])
        assert torch.equal(head.scaled_cosine(features_BD), expected[1])
    narrow_BD = features_BD.to(dtype)
    assert torch.equal(head(narrow_BD, labels_B), head(narrow_BD.float(), labels_B))


def test_a_zero_feature_is_finite() -> None:
    head = make_head()
    features_BD = torch.zeros(2, D, requires_grad=True)
    head(features_BD, torch.tensor([0, 1])).backward()
    assert features_BD.grad is not None
    assert features_BD.grad.isfinite().all()


def test_evaluation_has_no_margin() -> None:
    torch.manual_seed(0)
    head, plain = make_head(margin=0.5), make_head(margin=0.0)
    plain.load_state_dict(head.state_dict())
    features_BD, labels_B = make_batch(4)
    assert head(features_BD, labels_B) > 1.1 * plain(features_BD, labels_B)
    torch.testing.assert_close(
        head.eval()(features_BD, labels_B), plain.train()(features_BD, labels_B)
    )
    cos_BC = F.cosine_similarity(features_BD[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(head.scaled_cosine(features_BD) / head.scale, cos_BC)


def test_per_class_weights_are_the_only_parameters() -> None:
    head = make_head()
    assert [(name, p.shape) for name, p in head.named_parameters()] == [("weight", (C, D))]
    assert list(head.buffers()) == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"margin": 3.2}, "head.margin=3.2"),
        ({"margin": -0.1}, "head.margin=-0.1"),
        ({"scale": 0.0}, "head.scale=0.0"),
        ({"scale": math.inf}, "head.scale=inf"),
        ({"easy_margin": "yes"}, "head.easy_margin='yes'"),
    ],
)
def test_errors_name_values_out_of_range(values: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_head(**values)


def test_a_cosine_rounded_past_one_keeps_its_margin() -> None:
    """Products of unit vectors may round to values above 1, which have no sine."""
    torch.manual_seed(0)
    head = ArcFace(embedding_dim=64, num_classes=500, margin=0.5, scale=1.0, easy_margin=False,
                   **ONE_MARGIN)  # fmt: skip
    labels_B = torch.arange(500)
    features_BD = head.weight.detach().clone()
    assert head.scaled_cosine(features_BD).max() > 1
    target_B = head.logits(features_BD, labels_B).diagonal()
    # The sine of a cosine off by a rounding is about 5e-4.
    torch.testing.assert_close(target_B, torch.full((500,), math.cos(0.5)), rtol=0, atol=1e-3)
    assert target_B.max() <= math.cos(0.5) + 1e-7
