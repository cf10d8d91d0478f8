"""Training every head from the command line; warm-up of margin and scale."""

import csv

import pytest
import torch
from tests.conftest import SMALL

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.config.files import bundled
from arcloop.models.checkpoints import read_checkpoint

FILES = sorted(file.stem for file in (bundled("conf") / "head").glob("*.yaml"))
CHOICES = [name for name in FILES if not name.endswith("_paper")]  # for more classes than here
TRAIN = ["train", *SMALL, "trainer.max_epochs=1", "augmentation=none"]
NO_EXPORT = [
    "callbacks.export=null", "callbacks.build_index=null", "callbacks.evaluate=null",
    "callbacks.tensorboard=null",
]  # fmt: skip
BUFFERS = {
    "adacos": {"head.scale"}, "curricularface": {"head.t"},
    "adaface": {"head.length_mean", "head.length_std"},
    "cross_batch_memory": {"head.memory", "head.memory_labels"},
}  # fmt: skip
NO_WEIGHTS = ["pair_loss", "cross_batch_memory"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Work in a folder with one store for all runs."""
    folder = tmp_path_factory.mktemp("heads")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize("head", CHOICES)
def test_every_head_is_trained(shared, head):
    overrides = [f"head={head}", f"run_dir={head}", "trainer.max_epochs=2", *NO_EXPORT]
    assert main([*TRAIN, *overrides]) == 0
    run = artifacts.load(shared / head, "run")
    assert run.info["objective"] > 0.4  # a random guess gives 1/3
    checkpoint = read_checkpoint(shared / head / "checkpoints/last.ckpt")
    state = {name for name in checkpoint["state_dict"] if name.startswith("head.")}
    groups = [group["name"] for group in checkpoint["optimizer_states"][0]["param_groups"]]
    assert ("head" in groups) == (head not in NO_WEIGHTS)
    weights = {name for name in state if name.endswith(("weight", "proxies"))}
    assert len(weights) == (head not in NO_WEIGHTS)
    assert state - weights == BUFFERS.get(head, set())


def losses(run, *overrides):
    """Return the loss of each step of a run with constant weights, given by margin and scale."""
    still = ["optimizer.lr=1e-30", "optimizer.head_lr=1e-30", "scheduler=constant", "logger=csv",
             "trainer.log_every_n_steps=1", *NO_EXPORT]  # fmt: skip
    assert main([*TRAIN, *still, *overrides, f"run_dir={run}"]) == 0
    with open(f"{run}/metrics.csv", newline="") as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]


@pytest.mark.parametrize("head", ["arcface_sharded", "cosface"])
def test_margin_and_scale_rise_with_the_steps(shared, head):
    warm = ["callbacks=warmup", "callbacks.warmup.margin_steps=4",
            "callbacks.warmup.scale_from=4.0", "callbacks.warmup.scale_steps=2"]  # fmt: skip
    warmed = losses(f"{head}-warm", f"head={head}", "head.margin=0.4", "head.scale=8.0", *warm)
    assert len(warmed) == 6
    steady = {
        (margin, scale): losses(
            f"{head}-{margin}-{scale}", f"head={head}", f"head.margin={margin}",
            f"head.scale={scale}",
        )
        for margin, scale in ((0.0, 4.0), (0.1, 6.0), (0.4, 8.0))
    }  # fmt: skip
    expected = {0: (0.0, 4.0), 1: (0.1, 6.0), 4: (0.4, 8.0), 5: (0.4, 8.0)}
    for step, values in expected.items():
        assert warmed[step] == pytest.approx(steady[values][step], rel=1e-6)
    assert len({steady[values][0] for values in steady}) == len(steady)


@pytest.mark.parametrize(
    ("buffer", "overrides"),
    [
        ("t", ["head=curricularface", "callbacks=warmup", "callbacks.warmup.margin_steps=9"]),
        ("memory", ["head=cross_batch_memory", "head.memory_size=400"]),
    ],
)
def test_resumed_run_continues_margin_and_head_buffers(shared, buffer, overrides):
    overrides = [*overrides, "scheduler=constant", *NO_EXPORT]
    one, two = f"run_dir={buffer}-whole", f"run_dir={buffer}-parts"
    assert main([*TRAIN, *overrides, one, "trainer.max_epochs=2"]) == 0
    assert main([*TRAIN, *overrides, two]) == 0
    assert main([*TRAIN, *overrides, two, "trainer.max_epochs=2", "resume=true"]) == 0
    whole, parts = (
        read_checkpoint(shared / f"{buffer}-{run}/checkpoints/last.ckpt")["state_dict"]
        for run in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert whole[f"head.{buffer}"].any()


def test_run_with_another_warmup_is_another_run(shared, capsys):
    warm = [*TRAIN, "run_dir=plain", "head=cosface", "callbacks=warmup", *NO_EXPORT]
    assert main([*TRAIN, "run_dir=plain", "head=cosface", *NO_EXPORT]) == 0
    assert main(warm) == 2
    assert "another config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["head=softmax"], "NormalizedSoftmax has no margin to warm up"),
        (["head=pair_loss"], "PairLoss has no margin to warm up"),
        (
            ["head=adacos", "callbacks.warmup.margin_steps=null",
             "callbacks.warmup.scale_from=1.0", "callbacks.warmup.scale_steps=3"],
            "AdaCos has no scale to warm up",
        ),
        (["callbacks.warmup.scale_from=1.0"], "give both"),
        (["callbacks.warmup.margin_steps=0"], "callbacks.warmup.margin_steps=0"),
    ],
)  # fmt: skip
def test_warmup_of_a_missing_margin_or_scale_is_an_error(in_tmp, overrides, message, capsys):
    assert main([*TRAIN, "callbacks=warmup", *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not (in_tmp / "runs").exists()
