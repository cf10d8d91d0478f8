import pytest
import torch
from tests.test_compose import REQUIRED

from arcloop.compose import bundled, compose_config
from arcloop.errors import ConfigError
from arcloop.steps import build
from arcloop.training import NODES, Recipe
from arcloop.training.module import batch_seed


def recipe(*overrides):
    config = compose_config(["backbone.widths=[4,4]", "embedder.embedding_dim=8", *overrides])
    nodes = {name: build(config, name) for name in NODES}
    return Recipe(**nodes, seed=config.seed, monitor=config.monitor)


def test_batch_seed_differs_by_each_of_its_arguments_and_by_nothing_else():
    seeds = [
        batch_seed(s, e, b, r)
        for s in range(3) for e in range(3) for b in range(40) for r in range(3)
    ]  # fmt: skip
    assert len(set(seeds)) == len(seeds)
    assert batch_seed(1, 2, 3, 4) == batch_seed(1, 2, 3, 4)


def test_weights_are_a_function_of_the_seed():
    def weights(seed):
        return recipe(f"seed={seed}").make_module((16, 16, 1), 3).state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=-1", "optimizer.lr=-1"),
        ("optimizer.factory.momentum=-1", "momentum"),
        ("scheduler.warmup=2", "scheduler.warmup=2"),
        ("trainer.precision=17", "precision"),
        ("trainer.accelerator=abacus", "abacus"),
        ("augmentation.shift=3", "augmentation.shift=3"),
    ],
)
def test_rehearsal_finds_wrong_values_before_any_work(override, message):
    with pytest.raises(ConfigError, match=message):
        recipe(override).rehearse()


@pytest.mark.parametrize("group", ["backbone", "head", "optimizer", "scheduler", "augmentation"])
def test_every_choice_can_be_built(group):
    for file in sorted((bundled("conf") / group).glob("*.yaml")):
        choice = f"{group}={file.stem}"
        config = compose_config([choice, *REQUIRED.get(choice, [])])
        nodes = {name: build(config, name) for name in NODES}
        Recipe(**nodes, seed=0, monitor="val_top1").rehearse()
