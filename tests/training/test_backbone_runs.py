"""Training every backbone from the command line, with and without initial weights from a file."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from tests.conftest import arcloop_in

from arcloop.artifacts import load
from arcloop.cli.main import main
from arcloop.config.files import bundled
from arcloop.models.backbones.timm_import import import_timm
from arcloop.models.checkpoints import read_checkpoint
from arcloop.runtime.searcher import Model

TRAIN = [
    "train", "data=synthetic", "data.train=24", "data.val=12", "data.gallery=12", "data.query=12",
    "data.num_classes=2", "data.image_size=32", "data.noise=1.0", "loader.batch_size=12",
    "trainer.max_epochs=1", "embedder.embedding_dim=8", "callbacks=export_only",
]  # fmt: skip
TIMM = ["backbone=timm", "backbone.model=test_resnet.r160_in1k"]
SMALL = {  # one narrow choice of each backbone class
    "convnet": [],
    "iresnet18": ["backbone.widths=[8,8,8,8]"],
    "mobilefacenet": ["backbone.width=64", "backbone.features=64"],
    "timm": ["backbone.model=test_efficientnet"],
}


def test_one_choice_of_each_class_is_tested():
    """A choice without `_target_` has only other values for the class of another choice."""
    files = (bundled("conf") / "backbone").glob("*.yaml")
    classes = {file.stem: yaml.safe_load(file.read_text()).get("_target_") for file in files}
    assert {classes[name] for name in SMALL} == {*classes.values()} - {None}


@pytest.mark.parametrize("name", SMALL)
def test_every_backbone_is_trained_and_exported(in_tmp, capsys, name):
    channels = 3 if name in ("timm", "iresnet18") else 1
    overrides = [f"backbone={name}", f"data.channels={channels}", *SMALL[name]]
    assert main([*TRAIN, *overrides, "run_dir=run"]) == 0
    assert "scripted, within" in capsys.readouterr().err
    assert Model(Path("run/model.pt")).image_shape == (32, 32, channels)


def backbone(checkpoint: str) -> dict[str, torch.Tensor]:
    state, prefix = read_checkpoint(Path(checkpoint))["state_dict"], "embedder.backbone."
    return {n.removeprefix(prefix): w for n, w in state.items() if n.startswith(prefix)}


FROZEN = ["callbacks=freeze", "callbacks.build_index=null", "callbacks.evaluate=null"]


def test_run_starts_from_the_weights_of_a_file(in_tmp, capsys):
    """A backbone frozen for the whole run ends with the weights that timm loads from the file."""
    published = dict(import_timm().create_model("test_resnet", num_classes=10).state_dict())
    save_file(published, "published.safetensors")
    run = [*TRAIN, *TIMM, *FROZEN, "backbone_weights.file=published.safetensors"]
    assert main([*run, "run_dir=run"]) == 0
    assert "90 of 90 tensors fit" in capsys.readouterr().err
    expected = import_timm().create_model(
        "test_resnet", pretrained=True, pretrained_cfg_overlay={"state_dict": published},
        num_classes=0, in_chans=1,
    )  # fmt: skip
    found = backbone("run/checkpoints/last.ckpt")
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found[f"model.{name}"], value)


def test_weights_file_is_in_lineage_and_identity(in_tmp, capsys):
    assert main([*TRAIN, "run_dir=first"]) == 0
    Path("first/checkpoints/best.ckpt").rename("weights.ckpt")
    second = [*TRAIN, "run_dir=second", "backbone_weights.file=weights.ckpt"]
    assert main(second) == 0
    run = load(Path("second"), "run")
    assert run.config["backbone_weights"]["file"] == "weights.ckpt"
    assert main(["lineage", "second"]) == 0
    assert "weights weights.ckpt" in capsys.readouterr().out
    assert main(["reproduce", "second"]) == 0

    torch.save({name: w + 1 for name, w in backbone("weights.ckpt").items()}, "weights.ckpt")
    assert main(["lineage", "second"]) == 1
    assert "the file was changed" in capsys.readouterr().out
    assert main(second) == 2
    assert "another config or store" in capsys.readouterr().err
    Path("weights.ckpt").unlink()
    assert main(["lineage", "second"]) == 1
    assert "moved or removed" in capsys.readouterr().out


def test_resumed_run_uses_its_checkpoint_instead_of_the_weights_file(in_tmp):
    assert main([*TRAIN, "run_dir=first"]) == 0
    run = [*TRAIN, "run_dir=second", "backbone_weights.file=first/checkpoints/best.ckpt",
           "scheduler=constant"]  # fmt: skip
    assert main([*run, "trainer.max_epochs=2"]) == 0
    whole = backbone("second/checkpoints/last.ckpt")
    run[run.index("run_dir=second")] = "run_dir=third"
    assert main(run) == 0
    assert main([*run, "trainer.max_epochs=2", "resume=true"]) == 0
    resumed = backbone("third/checkpoints/last.ckpt")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_weights_that_do_not_fit_create_no_run(in_tmp, capsys):
    torch.save({"conv.weight": torch.ones(1)}, "weights.pt")
    assert main([*TRAIN, "run_dir=run", "backbone_weights.file=weights.pt"]) == 2
    assert "no tensor in this file fits the backbone" in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backbone_weights.file=nope.pt"], "the file does not exist"),
        (["backbone=timm", "backbone.model=reznet50"], "did you mean resnet50"),
        (["backbone=timm"], "backbone.model is required"),
        ([*TIMM, "+backbone.options.drp=1"], "unexpected keyword argument 'drp'"),
        (["+head.num_classes=2"], "head.num_classes cannot be set"),
        (["+head.embedding_dim=2"], "head.embedding_dim cannot be set"),
        (["+backbone.in_channels=1"], "backbone.in_channels cannot be set"),
        (["backbone_weights.fil=x"], "did you mean backbone_weights.file"),
    ],
)
def test_bad_input_is_one_message_before_any_work(in_tmp, capsys, overrides, message):
    assert main([*TRAIN, "run_dir=run", *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(in_tmp.iterdir()) == []


UNSCRIPTABLE = """
from torch import nn

class Backbone(nn.Module):
    def __init__(self, *, in_channels):
        super().__init__()
        self.layer = nn.Conv2d(in_channels, 4, 3)

    def forward(self, x):
        return (lambda y: self.layer(y))(x)
"""


def test_unscriptable_backbone_is_an_error_before_training(in_tmp, capsys, monkeypatch):
    Path("unscriptable.py").write_text(UNSCRIPTABLE)
    monkeypatch.syspath_prepend(in_tmp)
    own = ["backbone._target_=unscriptable.Backbone", "~backbone.widths", "~backbone.depth"]
    assert main([*TRAIN, *own, "run_dir=run"]) == 2
    error = capsys.readouterr().err
    assert "the model cannot be scripted" in error
    assert "epoch 1" not in error
    assert main([*TRAIN, *own, "run_dir=run", "callbacks.export=null"]) == 0


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    arguments = [*TRAIN, "run_dir=run", "callbacks.export=null"]
    return arcloop_in(tmp_path_factory.mktemp("trained"), *arguments)


@pytest.fixture
def trained(once, monkeypatch):
    """Work in a folder with a finished run of the default backbone, which tests do not change."""
    monkeypatch.chdir(once)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["backbone.widths=[8,8]"], "another backbone: "),
        (["backbone=mobilefacenet", "backbone.width=64"], "another backbone: "),
        (["embedder.embedding_dim=4"], "embedder.embedding_dim"),
        (["data.num_classes=3"], "other data: data.num_classes=3 instead of 2"),
    ],
)
def test_checkpoint_of_another_model_is_not_resumed(trained, capsys, overrides, named):
    before = Path("run/manifest.json").read_bytes()
    resumed = [*TRAIN, "run_dir=run", "callbacks.export=null", "resume=true"]
    assert main([*resumed, "trainer.max_epochs=2", *overrides]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "wrong shape" in error or "missing" in error or "other data" in error
    assert "Traceback" not in error
    assert Path("run/manifest.json").read_bytes() == before
    assert json.loads(before)["kind"] == "run"
