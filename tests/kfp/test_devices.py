"""The trainer and the devices of the steps agree with the GPUs that the cluster reserves."""

import pytest

from arcloop.errors import ConfigError
from arcloop.kfp.submission import read_submission


@pytest.fixture
def read(image):
    def read(*overrides):
        return read_submission(["cluster=onprem", f"cluster.image={image}", *overrides])

    return read


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ["gpu", 1, "auto", 1]),
        (["cluster=gke"], ["gpu", 1, "auto", 1]),
        (["experiment=mnist"], ["gpu", 1, "auto", 1]),
        (["cluster.steps.train.gpus=4"], ["gpu", 4, "ddp", 1]),
        (["cluster.steps.train.gpus=0"], ["cpu", 1, "auto", 1]),
        (["cluster.train=trainjob"], ["gpu", 1, "ddp", 2]),
        (["cluster.train=trainjob", "cluster.steps.train.gpus=0"], ["cpu", 1, "ddp", 2]),
        (["cluster.steps.train.gpus=2", "trainer=ddp"], ["gpu", 2, "ddp", 1]),
        (["trainer=auto"], ["auto", 1, "auto", 1]),
        (["cluster=local"], ["cpu", 1, "auto", 1]),
    ],
)
def test_the_trainer_uses_the_reserved_gpus(read, overrides, expected):
    submission = read(*overrides)
    trainer = submission.config["trainer"]
    assert [trainer[k] for k in ("accelerator", "devices", "strategy", "num_nodes")] == expected
    choice = [o for o in submission.parameters["trainer"] if o.startswith("trainer=")]
    assert bool(choice) == (expected[0] != "cpu" or expected[2] == "ddp")


def test_a_derived_trainer_is_printed_and_keeps_the_values_of_the_user(read, capsys):
    submission = read("trainer.max_epochs=3", "cluster.steps.train.gpus=2", "notify.webhook_env=X")
    assert "trainer=ddp trainer.devices=2: derived from" in capsys.readouterr().err
    assert submission.config["trainer"]["max_epochs"] == 3


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["trainer=cpu"], ["trainer.accelerator=cpu", "cluster.steps.train.gpus=1"]),
        (["trainer.accelerator=cpu"], ["trainer.accelerator=cpu", "cluster.steps.train.gpus=1"]),
        (["trainer.devices=4", "cluster.steps.train.gpus=2"],
         ["trainer.devices=4", "cluster.steps.train.gpus=2"]),
        (["trainer=gpu", "cluster.steps.train.gpus=2"],
         ["trainer.devices=1", "cluster.steps.train.gpus=2"]),
        (["trainer=ddp", "trainer.devices=[0,1]"],
         ["trainer.devices=[0, 1]", "cluster.steps.train.gpus=1"]),
        (["trainer=gpu", "cluster.steps.train.gpus=0"],
         ["trainer.accelerator=gpu", "cluster.steps.train.gpus=0"]),
        (["trainer.num_nodes=2"], ["trainer.num_nodes=2", "cluster.train=trainjob"]),
        (["cluster.train=trainjob", "cluster.steps.train.gpus=4"],
         ["trainer.devices=1", "cluster.steps.train.gpus=4"]),
        (["embed.device=cpu"], ["embed.device=cpu", "cluster.steps.embed.gpus=1"]),
        (["embed.device=cuda"], ["embed.device=cuda", "cluster.steps.index.gpus=0"]),
        (["+cluster.steps.prepare.gpus=1"], ["cluster.steps.prepare.gpus=1"]),
        (["cluster.steps.embed.gpus=2"], ["cluster.steps.embed.gpus=2"]),
    ],
)  # fmt: skip
def test_contradictions_name_both_keys(read, overrides, keys):
    with pytest.raises(ConfigError) as refused:
        read(*overrides)
    for key in keys:
        assert key in str(refused.value)
