import csv
import math
from pathlib import Path

import pytest
import torch

from arcloop.cli.main import main
from arcloop.config.composition import build, compose_config
from arcloop.errors import ConfigError, DivergedError
from arcloop.training import NODES, TrainingSetup
from arcloop.training.module import batch_seed, seed_generators

SMALL = [
    "data=synthetic", "data.train=300", "data.val=60", "data.num_classes=3", "data.image_size=16",
    "loader.batch_size=50", "backbone.widths=[4,4]", "embedder.embedding_dim=8",
]  # fmt: skip


def make_setup(*overrides):
    config = compose_config(["backbone.widths=[4,4]", "embedder.embedding_dim=8", *overrides])
    nodes = {name: build(config, name) for name in NODES}
    return TrainingSetup(**nodes, seed=config.seed, monitor=config.monitor)


def test_batch_seed_depends_on_each_argument_only():
    seeds = [
        batch_seed(s, e, b, r)
        for s in range(3) for e in range(3) for b in range(40) for r in range(3)
    ]  # fmt: skip
    assert len(set(seeds)) == len(seeds)
    assert batch_seed(1, 2, 3, 4) == batch_seed(1, 2, 3, 4)


def test_seeded_cpu_generator_equals_manual_seed():
    torch.manual_seed(5)
    expected = torch.rand(3)
    seed_generators(5, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


def logged_losses(capsys, *overrides):
    """Train; return the steps with a loss in metrics.csv and the number of printed losses."""
    options = [
        "callbacks=export_only",
        "callbacks.export=null",
        "run_dir=run",
        "trainer.max_epochs=2",
    ]
    assert main(["train", *SMALL, *options, *overrides]) == 0
    rows = []
    if Path("run/metrics.csv").exists():
        with open("run/metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    return [int(r["step"]) for r in rows if r.get("train_loss")], capsys.readouterr().err.count(
        "train_loss"
    )


@pytest.mark.parametrize(
    ("overrides", "steps", "epochs"),
    [
        (["trainer.log_every_n_steps=4"], [3, 7, 11], 2),
        (["trainer.log_every_n_steps=0"], [], 2),
        (
            ["trainer.max_steps=3", "monitor=train_loss", "monitor_mode=min"],
            [0, 1, 2],
            1,
        ),  # ends within an epoch, before the default of 50 steps
    ],
)
def test_loss_is_logged_every_few_steps_and_at_the_end_of_an_epoch(
    in_tmp, capsys, overrides, steps, epochs
):
    assert logged_losses(capsys, *overrides) == (steps, epochs)


def test_the_first_step_with_a_loss_that_is_not_finite_is_reported():
    """As on a GPU, where the losses of several steps are read together."""
    module = make_setup("seed=0").make_module((16, 16, 1), 3)
    module._unchecked = [(7, torch.tensor(2.0)), (8, torch.tensor(math.inf))]
    module._unchecked += [(9, torch.tensor(math.nan))]
    with pytest.raises(DivergedError, match="the loss is inf in step 8, epoch 1"):
        module._require_finite_losses()
    assert module._unchecked == []


def test_weights_are_a_function_of_the_seed():
    def weights(seed):
        return make_setup(f"seed={seed}").make_module((16, 16, 1), 3).state_dict()

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
def test_dry_run_finds_wrong_values(override, message):
    with pytest.raises(ConfigError, match=message):
        make_setup(override).dry_run()


def test_dry_run_checks_the_global_batch():
    options = "sampler=pk", "sampler.images_per_class=4", "loader.batch_size=2"
    make_setup(*options, "trainer=ddp_cpu", "trainer.devices=2").dry_run()
    with pytest.raises(ConfigError, match="a global batch of 2 images cannot be divided"):
        make_setup(*options).dry_run()
