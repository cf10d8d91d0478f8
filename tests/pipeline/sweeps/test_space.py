"""The combinations of a sweep: conditional keys and keys that vary together."""

import functools
from itertools import product

import pytest

from arcloop.config.composition import compose_config
from arcloop.errors import ConfigError
from arcloop.pipeline.sweeps.plan import plan
from arcloop.pipeline.sweeps.space import Space


@functools.cache
def valid(*overrides):
    try:
        compose_config(overrides)
    except ConfigError:
        return False
    return True


def test_a_key_is_left_out_for_the_choices_that_lack_it():
    """Against the config of every combination, with and without the key."""
    given = ["head.margin=0.2,0.4", "head=arcface,softmax", "seed=0,1", "head.easy_margin=true"]
    jobs = Space.of(given).jobs()
    expected = []
    lists = [[f"{o.partition('=')[0]}={v}" for v in o.partition("=")[2].split(",")] for o in given]
    for combination in product(*lists):
        kept = [o for o in combination if not o.startswith("head.")]
        kept += [o for o in combination if o.startswith("head.") and valid(*kept, o)]
        job = [o for o in combination if o in kept]
        if job not in expected:
            expected.append(job)
    assert jobs == expected
    assert len(jobs) == 6


def test_without_conditional_keys_the_combinations_are_the_product():
    given = [
        "seed=range(2)",
        "+trainer.max_time=null,1",
        "head=glob([arcface,soft*])",
        "check=full",
    ]
    assert Space.of(given).jobs() == [
        [f"seed={seed}", f"+trainer.max_time={time}", f"head={head}", "check=full"]
        for seed, time, head in product((0, 1), ("null", 1), ("arcface", "softmax"))
    ]


def test_of_two_overrides_of_a_key_the_last_one_counts():
    assert Space.of(["seed=0,1", "seed=2,2"]).jobs() == [["seed=2"]]


@pytest.mark.parametrize("several", [False, True])
def test_keys_that_vary_together(several):
    given = ["head.margin=0.2,0.3", "seed=0,1", "head.scale=16,32", "optimizer.lr=1,2"]
    keys = ["head.scale", "head.margin"]
    groups = [keys, ["seed", "optimizer.lr"]] if several else keys
    found = Space.of(given).zipped(groups).jobs()
    pairs = [("0.2", "16"), ("0.3", "32")]
    others = [(0, 1), (1, 2)] if several else list(product((0, 1), (1, 2)))
    assert sorted(found) == sorted(
        [f"head.margin={margin}", f"seed={seed}", f"head.scale={scale}", f"optimizer.lr={lr}"]
        for (margin, scale), (seed, lr) in product(pairs, others)
    )


def test_a_conditional_key_can_vary_together_with_its_group():
    space = Space.of(["head=arcface,softmax,cosface", "head.margin=0.2,0.3,0.4", "seed=0,1"])
    assert space.zipped(["head", "head.margin"]).jobs() == [
        [*head, f"seed={seed}"]
        for head in (["head=arcface", "head.margin=0.2"], ["head=softmax"],
                     ["head=cosface", "head.margin=0.4"])
        for seed in (0, 1)
    ]  # fmt: skip


def test_every_value_is_checked_once_with_first_values():
    given = ["head=softmax,arcface", "head.margin=0.2,0.4", "seed=0,1"]
    assert Space.of(given).checks() == [
        ["head=softmax", "seed=0"], ["head=arcface", "head.margin=0.2", "seed=0"],
        ["head=arcface", "head.margin=0.4", "seed=0"], ["head=softmax", "seed=1"],
    ]  # fmt: skip


def test_a_key_of_a_list_of_choices_exists_if_one_of_them_has_it():
    given = ["callbacks=default,early_stopping", "callbacks.early_stopping.patience=1,2"]
    assert len(Space.of(given).jobs()) == 3


def test_a_plan_has_all_keys_that_vary():
    given = ["data=synthetic", "head=arcface,softmax", "head.margin=0.2,0.4", "head.scale=8,16",
             "sweep.zip=[head.margin,head.scale]"]  # fmt: skip
    assert plan("train", given).swept == ("head", "head.margin", "head.scale")
