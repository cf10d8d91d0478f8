import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from arcloop.errors import ConfigError
from arcloop.training.optim import cosine, one_cycle

PEAKS = [0.1, 0.4]
SCHEDULES = {
    "one_cycle": partial(one_cycle, warmup=0.25, start_factor=0.04, end_factor=0.001),
    "cosine": partial(cosine, warmup=0.25, end_factor=0.01),
    "constant": partial(cosine, warmup=0.25, end_factor=1.0),
}


def make_optimizer() -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in PEAKS]
    return torch.optim.SGD(groups, momentum=0.9)


def follow(scheduler: LRScheduler, steps: int) -> list[list[float]]:
    """Return the learning rates of both groups at each step."""
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 101])
def test_rates_are_finite_positive_and_in_proportion(name: str, steps: int) -> None:
    # Two steps more than planned must not crash.
    rates = follow(SCHEDULES[name](make_optimizer(), steps), steps + 2)
    for first, second in rates:
        assert 0 < first <= PEAKS[0] + 1e-12
        assert second == pytest.approx(4 * first)


def test_one_cycle_matches_torch() -> None:
    steps = 80
    theirs = OneCycleLR(
        make_optimizer(),
        max_lr=PEAKS,
        total_steps=steps,
        pct_start=0.25,
        div_factor=25,
        final_div_factor=40,
        cycle_momentum=False,
    )
    ours = SCHEDULES["one_cycle"](make_optimizer(), steps)
    # Torch counts the steps of the warm-up from 1: it rises over 19 steps, one_cycle over 20.
    for mine, other in zip(follow(ours, steps), follow(theirs, steps), strict=True):
        assert mine == pytest.approx(other, abs=0.08 * PEAKS[1])


def test_one_cycle_rises_peaks_and_falls() -> None:
    rates = [first for first, _ in follow(SCHEDULES["one_cycle"](make_optimizer(), 81), 81)]
    peak = rates.index(max(rates))
    assert rates[0] == pytest.approx(0.04 * 0.1)
    assert max(rates) == pytest.approx(0.1, rel=1e-3)
    assert 19 <= peak <= 21
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0.001 * 0.1)


def test_cosine_rises_linearly_then_follows_half_a_cosine() -> None:
    rates = [first for first, _ in follow(SCHEDULES["cosine"](make_optimizer(), 101), 101)]
    rise = 0.25 * 101
    for step in range(26):
        assert rates[step] == pytest.approx(0.1 * (step + 1) / (rise + 1))
    for step in range(26, 101):
        progress = (step - rise) / (100 - rise)
        assert rates[step] == pytest.approx(
            0.1 * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
        )


def test_constant_stays_at_the_end_of_its_warmup() -> None:
    rates = [first for first, _ in follow(SCHEDULES["constant"](make_optimizer(), 100), 100)]
    assert rates[:26] == pytest.approx([0.1 * (step + 1) / 26 for step in range(26)])
    assert rates[26:] == [0.1] * 74


@pytest.mark.parametrize("name", SCHEDULES)
def test_resumed_schedule_continues_unchanged(name: str) -> None:
    expected = follow(SCHEDULES[name](make_optimizer(), 20), 20)
    first = SCHEDULES[name](make_optimizer(), 20)
    follow(first, 8)
    resumed = SCHEDULES[name](make_optimizer(), 20)
    resumed.optimizer.load_state_dict(first.optimizer.state_dict())
    resumed.load_state_dict(first.state_dict())
    assert follow(resumed, 12) == expected[8:]


@pytest.mark.parametrize("name", SCHEDULES)
def test_values_out_of_range_are_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"scheduler\.warmup=1\.5"):
        SCHEDULES[name](make_optimizer(), 10, warmup=1.5)
    with pytest.raises(ConfigError, match=r"scheduler\.total_steps=0"):
        SCHEDULES[name](make_optimizer(), 0)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_fit_of_one_step_is_valid(name: str, warmup: float) -> None:
    ((first, _),) = follow(SCHEDULES[name](make_optimizer(), 1, warmup=warmup), 1)
    assert 0 < first <= PEAKS[0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_constant_after_the_end(name: str) -> None:
    rates = follow(SCHEDULES[name](make_optimizer(), 10), 15)
    assert rates[10:] == [rates[9]] * 5
