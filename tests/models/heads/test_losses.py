"""All heads except ArcFace (see test_arcface) against `oracle`, and in corner cases."""

import functools
import math

import numpy as np
import pytest
import torch
from tests.models.heads import oracle
from tests.models.heads.oracle import ONE_MARGIN
from torch import Tensor

from arcloop.config.composition import build_node, compose_config
from arcloop.errors import ConfigError
from arcloop.models import (
    AdaCos,
    AdaFace,
    ArcFace,
    CombinedMargin,
    CosFace,
    CurricularFace,
    ElasticArcFace,
    ElasticCosFace,
    MagFace,
    NormalizedSoftmax,
    SubCenterArcFace,
)
from arcloop.models.heads.adaptive_margins import _cos_with_adaptive_margin
from arcloop.models.heads.cosine_classifier import scaled_cosine

B, D, C = 12, 5, 7
MAG = {
    "scale": 16.0, "low_margin": 0.3, "high_margin": 0.9, "low_length": 4.0, "high_length": 9.0,
    "length_weight": 3.0,
}  # fmt: skip
ELASTIC = {"scale": 16.0, "margin": 0.4, "std": 0.3}
DRAWN = torch.randn(B, generator=torch.Generator().manual_seed(5)).double().tolist()
CURRICULAR = {"scale": 16.0, "margin": 0.4, "momentum": 0.9}
ADA = {"scale": 16.0, "margin": 0.4, "momentum": 0.9}
CASES = {
    "softmax": (NormalizedSoftmax, {"scale": 30.0}, oracle.softmax),
    "cosface": (CosFace, ONE_MARGIN | {"scale": 30.0, "margin": 0.35}, oracle.cosface),
    "cosface 0": (CosFace, ONE_MARGIN | {"scale": 30.0, "margin": 0.0}, oracle.cosface),
    "combined": (CombinedMargin, {"scale": 8.0, "m1": 1.0, "m2": 0.3, "m3": 0.2}, oracle.combined),
    "sphere": (CombinedMargin, {"scale": 8.0, "m1": 3.5, "m2": 0.0, "m3": 0.0}, oracle.combined),
    "below": (CombinedMargin, {"scale": 8.0, "m1": 0.9, "m2": 0.4, "m3": 0.15}, oracle.combined),
    "sub-center": (
        SubCenterArcFace,
        ONE_MARGIN | {"scale": 30.0, "margin": 0.5, "easy_margin": False, "sub_centers": 3},
        oracle.arcface,
    ),
    "arcface by size": (
        ArcFace,
        ONE_MARGIN | {"scale": 30.0, "margin": 0.1, "easy_margin": False, "size_margin": 0.4},
        functools.partial(oracle.by_size, kind="arc", power=0.25),
    ),
    "cosface by size": (
        CosFace,
        {"scale": 30.0, "margin": 0.0, "size_margin": 0.5, "size_power": 0.7},
        functools.partial(oracle.by_size, kind="cos", power=0.7),
    ),
    "sub-center by size": (
        SubCenterArcFace,
        ONE_MARGIN
        | {"scale": 30.0, "margin": 0.2, "easy_margin": False}
        | {"size_margin": 0.3, "sub_centers": 3},
        functools.partial(oracle.by_size, kind="arc", power=0.25),
    ),
    "adacos fixed": (AdaCos, {"dynamic": False}, oracle.adacos),
    "adacos": (AdaCos, {"dynamic": True}, oracle.adacos),
    "curricularface": (CurricularFace, CURRICULAR, oracle.curricularface),
    "curricularface wide": (CurricularFace, CURRICULAR | {"margin": 1.2}, oracle.curricularface),
    "magface": (MagFace, MAG | {"easy_margin": False}, oracle.magface),
    "magface easy": (MagFace, MAG | {"easy_margin": True}, oracle.magface),
    "adaface": (AdaFace, ADA | {"concentration": 0.333}, oracle.adaface),
    "adaface wide": (AdaFace, ADA | {"margin": 1.0, "concentration": 2.0}, oracle.adaface),
    "elastic arc": (
        ElasticArcFace,
        ELASTIC | {"plus": False},
        functools.partial(oracle.elastic, kind="arc", drawn=DRAWN),
    ),
    "elastic arc plus": (
        ElasticArcFace,
        ELASTIC | {"plus": True},
        functools.partial(oracle.elastic, kind="arc", drawn=DRAWN),
    ),
    "elastic cos": (
        ElasticCosFace,
        ELASTIC | {"plus": False},
        functools.partial(oracle.elastic, kind="cos", drawn=DRAWN),
    ),
    "elastic cos plus": (
        ElasticCosFace,
        ELASTIC | {"plus": True},
        functools.partial(oracle.elastic, kind="cos", drawn=DRAWN),
    ),
}
STATEFUL = ["adacos", "curricularface", "adaface"]


def make(case: str):
    kind, values, _ = CASES[case]
    torch.manual_seed(0)
    head = kind(embedding_dim=D, num_classes=C, **values)
    head.set_class_sizes(torch.tensor(oracle.SIZES))
    return head


def make_batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features_BD = 3 * torch.randn(B, D, generator=generator)
    return features_BD, torch.randint(C, (B,), generator=generator)


def loss_of(head, features_BD: Tensor, labels_B: Tensor) -> Tensor:
    torch.manual_seed(5)  # as `DRAWN` was
    return head(features_BD, labels_B)


def expected(case: str, weight, features, labels, state=None, frozen=None):
    _, values, function = CASES[case]
    return function(features, weight, labels, state, frozen, **values)


def as_arrays(*tensors: Tensor) -> list:
    return [t.detach().double().numpy() if t.is_floating_point() else t.tolist() for t in tensors]


@pytest.mark.parametrize("case", CASES)
def test_loss_equals_the_oracle_step_after_step(case: str) -> None:
    head = make(case)
    state = None
    for step in range(3):
        features_BD, labels_B = make_batch(step)
        loss, state = expected(case, *as_arrays(head.weight, features_BD, labels_B), state)
        assert loss_of(head, features_BD, labels_B).item() == pytest.approx(loss, rel=1e-5)
        for name, buffer in head.state_dict().items():
            assert name == "weight" or buffer.item() == pytest.approx(state[name], rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_finite_differences_of_the_oracle(case: str) -> None:
    head = make(case).double()
    features_BD, labels_B = make_batch(7)
    features_BD = features_BD.double().requires_grad_()
    weight, features, labels = as_arrays(head.weight, features_BD, labels_B)
    loss, frozen = expected(case, weight, features, labels)
    actual = loss_of(head, features_BD, labels_B)
    assert actual.dtype == torch.float64
    assert actual.item() == pytest.approx(loss, rel=1e-8)  # scales are made as float32
    actual.backward()
    for array, grad in ((features, features_BD.grad), (weight, head.weight.grad)):
        for index in np.ndindex(array.shape):
            value, step = array[index], 1e-6
            array[index] = value + step
            above, _ = expected(case, weight, features, labels, None, frozen)
            array[index] = value - step
            below, _ = expected(case, weight, features, labels, None, frozen)
            array[index] = value
            slope = (above - below) / (2 * step)
            assert grad[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_evaluation_has_no_margin_and_changes_no_state(case: str) -> None:
    head = make(case)
    loss_of(head, *make_batch(0))
    before = {name: b.clone() for name, b in head.named_buffers()}
    features_BD, labels_B = make_batch(1)
    scale = float(head.scale)
    loss = oracle.plain(*as_arrays(features_BD, head.weight, labels_B), scale)
    assert head.eval()(features_BD, labels_B).item() == pytest.approx(loss, rel=1e-5)
    assert all(torch.equal(before[name], b) for name, b in head.named_buffers())
    cos_BC = np.cos(oracle.angles(*as_arrays(features_BD, head.weight)))
    found_BC = (head.scaled_cosine(features_BD) / head.scale).double()
    torch.testing.assert_close(found_BC, torch.from_numpy(cos_BC), rtol=1e-5, atol=1e-5)


def corner_batch(head) -> tuple[Tensor, Tensor]:
    """Parallel, opposite and orthogonal to the class, at thresholds, and a zero feature."""
    with torch.no_grad():
        head.weight.zero_()
        head.weight[..., 0] = 2.0
    switches = [math.pi - 0.5, math.pi - 0.4, math.pi - 0.3, 0.4, math.pi / 2, math.pi / 3.5]
    features = torch.zeros(4 + len(switches), D)
    features[0, 0], features[1, 0], features[2, 1] = 4.0, -4.0, 4.0
    for row, angle in enumerate(switches, start=4):
        features[row, 0], features[row, 1] = math.cos(angle), math.sin(angle)
    return features, torch.zeros(len(features), dtype=torch.int64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_corners_are_finite_in_every_precision(case: str, dtype: torch.dtype) -> None:
    head = make(case)
    features_BD, labels_B = corner_batch(head)
    if dtype == torch.float16:  # the gradient at a zero feature exceeds its range
        features_BD, labels_B = features_BD[features_BD.any(dim=1)], labels_B[1:]
    features_BD = features_BD.to(dtype).requires_grad_()
    for _ in range(2):
        loss = head(features_BD, labels_B)
        loss.backward()
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert loss.isfinite()
    assert features_BD.grad.dtype == dtype
    assert features_BD.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()
    assert all(buffer.isfinite().all() for buffer in head.buffers())


@pytest.mark.parametrize("case", CASES)
def test_autocast_changes_nothing(case: str) -> None:
    features_BD, labels_B = make_batch(3)
    loss = loss_of(make(case), features_BD.bfloat16().float(), labels_B)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss_of(make(case), features_BD.bfloat16(), labels_B), loss)


@pytest.mark.parametrize("case", STATEFUL)
def test_a_reloaded_head_continues_with_its_state(case: str) -> None:
    whole, first, second = make(case), make(case), make(case)
    for step in range(2):
        loss_of(whole, *make_batch(step))
        loss_of(first, *make_batch(step))
    second.load_state_dict(first.state_dict())
    losses = [loss_of(head, *make_batch(2)) for head in (whole, second, make(case))]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("case", CASES)
def test_backward_works_after_the_next_forward_pass(case: str) -> None:
    head = make(case)
    first = loss_of(head, *make_batch(0))
    loss_of(head, *make_batch(1)).backward()
    first.backward()
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("case", [c for c in CASES if "margin" in CASES[c][0].warmable])
def test_margin_factor_zero_is_no_margin(case: str) -> None:
    head = make(case)
    head.set_warmup(margin=0.0, scale=3.0)
    features_BD, labels_B = make_batch(4)
    loss = loss_of(head, features_BD, labels_B).item()
    if isinstance(head, MagFace):
        head.length_weight = 0.0
        loss = loss_of(head, features_BD, labels_B).item()
    weight, features, labels = as_arrays(head.weight, features_BD, labels_B)
    if isinstance(head, CurricularFace):  # the weights of hard negatives stay
        values = CURRICULAR | {"margin": 0.0, "scale": 3.0}
        plain, _ = oracle.curricularface(features, weight, labels, None, None, **values)
    else:
        plain = oracle.plain(features, weight, labels, 3.0)
    assert loss == pytest.approx(plain, rel=1e-5)


def test_margin_factor_half_is_half_the_margin() -> None:
    half = CombinedMargin(embedding_dim=D, num_classes=C, scale=8.0, m1=1.5, m2=0.2, m3=0.1)
    head = CombinedMargin(embedding_dim=D, num_classes=C, scale=8.0, m1=2.0, m2=0.4, m3=0.2)
    half.load_state_dict(head.state_dict())
    head.set_warmup(margin=0.5)
    torch.testing.assert_close(head(*make_batch(0)), half(*make_batch(0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("z", [-1.0, -0.3, 0.0, 0.3, 1.0])
def test_adaface_at_every_angle(z: float, dtype: torch.dtype) -> None:
    margin = 0.4
    angle = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    cos = torch.cat([angle.cos().to(dtype), torch.tensor([1.0, -1.0], dtype=dtype)])
    cos.requires_grad_()
    moved = _cos_with_adaptive_margin(cos, margin, torch.full_like(cos, z))
    for c, value in zip(cos.tolist(), moved.tolist(), strict=True):
        turned = min(math.pi, max(0.0, math.acos(c) - margin * z))
        assert value == pytest.approx(math.cos(turned) - margin * (1 + z), abs=1e-3)
    moved.sum().backward()
    assert cos.grad.isfinite().all()


@pytest.mark.parametrize("values", [(1.0, 0.5, 0.0), (2.5, 0.3, 0.1), (0.9, 0.4, 0.15)])
def test_combined_target_decreases_as_the_angle_grows(values) -> None:
    m1, m2, m3 = values
    head = CombinedMargin(embedding_dim=2, num_classes=2, scale=1.0, m1=m1, m2=m2, m3=m3)
    cos = torch.linspace(0, math.pi, 10_001, dtype=torch.float64).cos().requires_grad_()
    target = head.with_margin(cos, torch.zeros(len(cos), dtype=torch.int64))
    assert (target.diff() < 0).all()
    (gradient,) = torch.autograd.grad(target.sum(), cos)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("dynamic", [False, True])
def test_adacos_scale_is_at_least_one_for_few_classes(classes: int, dynamic: bool) -> None:
    head = AdaCos(embedding_dim=D, num_classes=classes, dynamic=dynamic)
    head(torch.randn(4, D), torch.zeros(4, dtype=torch.int64)).backward()
    assert head.scale >= 1
    assert head.weight.grad.isfinite().all()


def test_adaface_ignores_a_batch_of_one() -> None:
    head = make("adaface")
    head(*make_batch(0))
    before = head.length_std.clone()
    head(torch.randn(1, D), torch.tensor([0])).backward()
    assert torch.equal(head.length_std, before)


def test_elastic_margins_depend_only_on_the_global_generator() -> None:
    head, batch = make("elastic arc"), make_batch(0)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(head(*batch).item())
    assert losses[0] == losses[1] != losses[2]


def test_sub_centers_have_their_own_vectors() -> None:
    head = make("sub-center")
    assert head.weight.shape == (C, 3, D)
    cos_BCK = scaled_cosine(head.weight.flatten(0, 1), head.weight.flatten(0, 1), 1.0)
    assert cos_BCK.fill_diagonal_(0).max() < 0.9999
    torch.testing.assert_close(
        head.scaled_cosine(head.weight[4]).argmax(dim=1), torch.full((3,), 4)
    )


@pytest.mark.parametrize(
    ("case", "values", "message"),
    [
        ("cosface", {"margin": 1.1}, r"head\.margin=1\.1 must be less than or equal to 1"),
        ("cosface", {"margin": "a"}, r"head\.margin='a' must be a number"),
        ("softmax", {"scale": 0.0}, r"head\.scale=0\.0"),
        ("combined", {"m1": 0.0}, r"head\.m1=0\.0"),
        ("combined", {"m2": 4.0}, r"head\.m2=4\.0 must be less than 3\.14159"),
        ("combined", {"m3": -1.0}, r"head\.m3=-1\.0"),
        ("sub-center", {"sub_centers": 0}, r"head\.sub_centers=0"),
        ("adacos", {"dynamic": 1}, r"head\.dynamic=1"),
        ("curricularface", {"margin": 3.2}, r"head\.margin=3\.2"),
        ("curricularface", {"momentum": 1.5}, r"head\.momentum=1\.5"),
        ("magface", {"low_margin": 1.0}, "are not ranges"),
        ("magface", {"high_length": 4.0}, "are not ranges"),
        ("magface", {"low_length": 0.0}, r"head\.low_length=0\.0"),
        ("adaface", {"margin": 1.5}, r"head\.margin=1\.5"),
        ("adaface", {"concentration": 0.0}, r"head\.concentration=0\.0"),
        ("elastic arc", {"margin": 3.2}, r"head\.margin=3\.2"),
        ("elastic cos", {"margin": 1.2}, r"head\.margin=1\.2"),
        ("elastic cos", {"std": -0.1}, r"head\.std=-0\.1"),
    ],
)
def test_errors_name_values_out_of_range(case: str, values, message: str) -> None:
    kind, good, _ = CASES[case]
    with pytest.raises(ConfigError, match=message):
        kind(embedding_dim=D, num_classes=C, **good | values)


@pytest.mark.parametrize("excess", [0.99, 1.01])
def test_lower_bound_of_magface_keeps_the_optimal_norm_of_hard_images_off_the_lower_limit(excess):
    """Section on convergence of the paper: at a = l_a the loss still decreases with the norm.

    The gradient is largest where sin(θ + m) = 1 and the target has no probability.
    """
    values = {"low_margin": 0.45, "high_margin": 0.8, "low_length": 10.0, "high_length": 110.0}
    head = MagFace(embedding_dim=400, num_classes=3, length_weight=35.0, scale=64.0,
                   easy_margin=False, **values).double()  # fmt: skip
    assert head.min_length_weight == pytest.approx(22.586666666666673)  # authors' run/trainer.py
    head.length_weight = excess * head.min_length_weight
    angle = math.pi / 2 - values["low_margin"]
    weight_CD = torch.zeros(3, 400, dtype=torch.float64)
    weight_CD[0, 0] = 1.0
    weight_CD[1:, 0], weight_CD[1:, 1] = math.cos(angle), math.sin(angle)  # θ = 0 to classes 1, 2
    head.weight.data = weight_CD
    direction_D = weight_CD[1]
    length = torch.tensor(10.0001, dtype=torch.float64, requires_grad=True)
    head(length * direction_D[None], torch.tensor([0])).backward()
    assert (length.grad < 0) == (excess > 1)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({}, []),
        ({"length_weight": 13.0}, ["head.length_weight=13 is below 13.7, the lower bound"]),
        (
            {"low_length": 9.0, "length_weight": 163.0},
            ["near √embedding_dim = 8.0, outside of head.low_length=9"],
        ),
    ],
)
def test_magface_cautions(values, found) -> None:
    node = compose_config(["head=magface", *(f"head.{n}={v}" for n, v in values.items())]).head
    head = build_node(node)(embedding_dim=64, num_classes=5)
    cautions = head.cautions()
    assert len(cautions) == len(found)
    assert all(part in caution for part, caution in zip(found, cautions, strict=True))


def test_autocast_does_not_change_cosines() -> None:
    torch.manual_seed(0)
    features, weight = torch.randn(8, 16), torch.randn(4, 16)
    outside = scaled_cosine(features, weight, 64.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scaled_cosine(features, weight, 64.0), outside)
