"""Hub folders: the same embeddings from config.json and safetensors as from model.pt."""

import json
import sys

import numpy as np
import pytest
import torch

from arcloop.config.composition import build_node, compose_config, to_plain
from arcloop.errors import ArcloopError, ArtifactError, ConfigError
from arcloop.export.hub import is_hub_folder, read_hub, write_weights
from arcloop.export.torchscript import for_inference
from arcloop.models.embedder import make_embedder
from arcloop.runtime.images import Conversion
from arcloop.runtime.searcher import Model, save_model


def write(folder, *overrides, shape=(32, 32, 3), quality=False):
    """Write the hub folder of a model with random weights and statistics; returns the model."""
    torch.manual_seed(0)
    config = to_plain(compose_config([*overrides, "embedder.embedding_dim=8"]))
    nodes = {name: config[name] for name in ("backbone", "embedder")}
    made = make_embedder(build_node(nodes["backbone"]), build_node(nodes["embedder"]), shape)
    made.train()(torch.randint(0, 256, (8, shape[2], *shape[:2]), dtype=torch.uint8))
    scripted = torch.jit.script(for_inference(made))
    file = folder.parent / "model.pt"
    conversion = Conversion(background="white", resize="pad")
    save_model(scripted, file, image_shape=shape, embedding_dim=8, conversion=conversion,
               quality=quality)  # fmt: skip
    model = Model(file)
    folder.mkdir()
    nodes["embedder"] |= made.normalisation()
    write_weights(folder, model, scripted, {**nodes, "config": {"seed": 0}, "metrics": {"top1": 1}})
    return model


@pytest.mark.parametrize(
    ("overrides", "shape"),
    [
        (["backbone=convnet"], (16, 24, 1)),
        (["backbone=mobilefacenet"], (112, 112, 3)),
        (["backbone=iresnet18"], (32, 32, 3)),
        (["backbone=timm", "backbone.model=test_efficientnet"], (64, 64, 3)),
        (["backbone=timm", "backbone.model=test_vit"], (160, 160, 3)),
    ],
)
def test_embeddings_are_those_of_the_run(tmp_path, overrides, shape):
    model = write(tmp_path / "hub", *overrides, shape=shape)
    found = read_hub(tmp_path / "hub", "cpu")
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    np.testing.assert_allclose(found.model.embed(images), model.embed(images), atol=1e-5)
    assert found.model.sizes() == model.sizes()
    assert found.model.sha256 == model.sha256
    assert (found.searcher, found.metrics, found.config["seed"]) == (None, {"top1": 1}, 0)


def test_quality_is_that_of_the_run(tmp_path):
    model = write(tmp_path / "hub", "backbone=convnet", quality=True)
    found = read_hub(tmp_path / "hub", "cpu").model
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    for one, other in zip(found.embed_with_quality(images), model.embed_with_quality(images),
                          strict=True):  # fmt: skip
        np.testing.assert_allclose(one, other, rtol=1e-4)
    np.testing.assert_allclose(found.embed(images), model.embed(images), atol=1e-5)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "hub", "backbone=convnet", "backbone.widths=[8]")
    return tmp_path / "hub"


def change(folder, **values):
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | values))


CALLS = []


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "absent.nets.Net"}, "No module named 'absent'"),
        ({"_target_": "arcloop.models.Missing"}, "cannot be imported"),
        ({"_target_": "builtins.print"}, "builtins.print is not a class of Module"),
        ({"_target_": f"{__name__}.CALLS.append"}, "cannot be imported"),
        ({"nested": {"_target_": "arcloop.models.ConvNet"}}, r"lacks backbone\._target_"),
        ({"_target_": "subprocess.Popen", "args": ["false"]}, "is not a class of Module"),
        ({"_target_": "arcloop.models.ConvNet", "_partial_": True, "depth": 1,
          "widths": {"_target_": "subprocess.Popen", "args": ["false"]}},
         "subprocess.Popen is not a class"),
    ],
)  # fmt: skip
def test_a_folder_calls_only_constructors_of_networks(folder, node, message):
    change(folder, backbone=node)
    with pytest.raises(ArcloopError, match=message):
        read_hub(folder, "cpu")
    assert CALLS == []


def test_damaged_folders_are_reported(folder, tmp_path):
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[:-1], content[:-4] + b"\0\0\0\1", b""):
        weights.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"model.safetensors cannot be used: its hash"):
            read_hub(folder, "cpu")
    weights.unlink()
    with pytest.raises(ArtifactError, match="No such file"):
        read_hub(folder, "cpu")
    weights.write_bytes(content)
    change(folder, backbone={"_target_": "arcloop.models.ConvNet", "_partial_": True,
                             "widths": [9], "depth": 2})  # fmt: skip
    with pytest.raises(ArtifactError, match=r"model.safetensors cannot be used: Error"):
        read_hub(folder, "cpu")
    config = json.loads((folder / "config.json").read_bytes())
    del config["backbone"], config["quality"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"lacks quality, backbone\._target_"):
        read_hub(folder, "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU is visible"):
            read_hub(folder, "cuda")


def test_other_folders_are_no_hub_folders(folder, tmp_path):
    assert is_hub_folder(folder)
    for content in ("{}", "[]", "no json", '{"library_name": "timm"}'):
        (folder / "config.json").write_text(content)
        assert not is_hub_folder(folder)
        with pytest.raises(ArtifactError, match="not that of an arcloop model"):
            read_hub(folder, "cpu")
    assert not is_hub_folder(tmp_path / "missing")


def test_loading_unpickles_nothing(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    import pickle

    for module in (pickle, sys.modules["_pickle"]):
        monkeypatch.setattr(module, "Unpickler", refuse)
        monkeypatch.setattr(module, "loads", refuse)
        monkeypatch.setattr(module, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch.jit, "load", refuse)
    read_hub(folder, "cpu")
