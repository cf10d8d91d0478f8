"""Fine-tuning models of timm from the command line, from the training to the served answer."""

import csv
import importlib.util
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tests.conftest import arcloop_in

from arcloop.artifacts import load
from arcloop.cli.main import main
from arcloop.models import Embedder, Lora, TimmBackbone
from arcloop.models.backbones.timm_import import import_timm
from arcloop.models.checkpoints import read_checkpoint
from arcloop.runtime.images import encode_png
from arcloop.runtime.predictor import Predictor, PredictRequest
from arcloop.runtime.searcher import Model
from arcloop.serving.archive import collect, write_archive
from arcloop.serving.deploy import parse_arguments

FEW = [
    "data=synthetic", "data.train=24", "data.val=12", "data.gallery=12", "data.query=12",
    "data.num_classes=2", "data.channels=3", "data.image_size=32", "data.noise=1.0",
    "loader.batch_size=12", "embedder.embedding_dim=8", "optimizer=adamw", "scheduler=constant",
    "trainer.log_every_n_steps=1", "callbacks.evaluate=null", "run_dir=run",
]  # fmt: skip
TUNE = {
    "test_vit": [
        "trainer.precision=bf16-mixed", "callbacks=ema", "callbacks.ema.decay=0.5",
        "optimizer.layer_decay=0.5", "optimizer.backbone_lr_factor=0.1",
        "backbone.lora.rank=2", "backbone.lora.alpha=3.0", "backbone.grad_checkpointing=true",
        "+backbone.options.depth=2",
    ],
    "test_convnext": ["trainer.precision=bf16-mixed", "backbone.grad_checkpointing=true"],
}  # fmt: skip
OPTIONS = {"test_vit": {"depth": 2}}
LORA = [*FEW, "backbone=timm", "backbone.model=test_vit", *TUNE["test_vit"]]


def random_weights(model: str, file: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    state = import_timm().create_model(model, num_classes=5, **OPTIONS.get(model, {})).state_dict()
    torch.save({"state_dict": {f"module.{name}": w for name, w in state.items()}}, file)
    return state


def run_in(folder: Path, model: str, *more: str) -> Path:
    random_weights(model, folder / "weights.pt")
    return arcloop_in(
        folder, "train", *FEW, "backbone=timm", f"backbone.model={model}",
        "backbone_weights.file=weights.pt", *TUNE.get(model, []), *more,
    ) / "run"  # fmt: skip


@pytest.fixture(scope="module")
def adapted(lora_extra, tmp_path_factory):
    """A run of two epochs with adapters."""
    return run_in(tmp_path_factory.mktemp("lora"), "test_vit", "trainer.max_epochs=2")


def embedder(model: str) -> Embedder:
    lora = Lora(rank=0, alpha=1.0, dropout=0.0, modules=[])
    backbone = TimmBackbone(
        in_channels=3, image_size=(32, 32), model=model, options=OPTIONS[model],
        grad_checkpointing=False, lora=lora,
    )  # fmt: skip
    return Embedder(
        backbone, image_shape=(32, 32, 3), embedding_dim=8, dropout=0.0, mean=None, std=None
    ).eval()


def merged(state: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """W + scale · B·A for each adapted layer, by the formula of the paper."""
    plain = {}
    for name, value in state.items():
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            a, b = (state[f"{layer}.lora_{part}.default.weight"] for part in "AB")
            plain[f"{layer}.weight"] = value + scale * b @ a
        elif ".lora_" not in name:
            plain[name.replace(".base_layer.", ".")] = value
    return plain


@torch.no_grad()
def test_the_exported_model_has_the_merged_weights(adapted):
    state = read_checkpoint(adapted / "checkpoints/best.ckpt")["state_dict"]
    mine = {n.removeprefix("embedder."): w for n, w in state.items() if n.startswith("embedder.")}
    expected = embedder("test_vit")
    expected.load_state_dict(merged(mine, scale=3.0 / 2))
    golden = np.load(adapted / "golden.npz")
    pixels = torch.from_numpy(golden["images"]).permute(0, 3, 1, 2)
    found = torch.from_numpy(Model(adapted / "model.pt").embed(golden["images"]))
    torch.testing.assert_close(found, expected(pixels), rtol=0, atol=1e-4)
    layers = [name for name in mine if name.endswith("lora_B.default.weight")]
    assert len(layers) == 4 * 2
    assert all(mine[name].any() for name in layers)  # all of them were trained
    exported = torch.jit.load(str(adapted / "model.pt")).state_dict()
    assert exported.keys() == expected.state_dict().keys()
    assert {w.dtype for w in exported.values() if w.is_floating_point()} == {torch.float32}


def test_adapters_are_trained_instead_of_the_weights(adapted):
    state = read_checkpoint(adapted / "checkpoints/last.ckpt")["state_dict"]
    source = torch.load(adapted.parent / "weights.pt")["state_dict"]
    for block in range(2):
        name = f"blocks.{block}.attn.qkv"
        found = state[f"embedder.backbone.model.{name}.base_layer.weight"]
        assert torch.equal(found, source[f"module.{name}.weight"])
    assert torch.equal(state["embedder.backbone.model.norm.weight"], source["module.norm.weight"])
    assert not any("patch_embed.proj.lora" in name for name in state)


def test_learning_rates_fall_from_the_neck_to_the_stem(adapted):
    """The stem has no adapter."""
    with open(adapted / "metrics.csv", newline="") as file:
        row = next(csv.DictReader(file))
    rates = {n.partition("/")[2]: float(v) for n, v in row.items() if n.startswith("lr-")}
    expected = {f"backbone_{layer:02}": 1e-3 * 0.1 * 0.5 ** (3 - layer) for layer in (1, 2)}
    assert rates == pytest.approx(
        expected | {"embedder": 1e-3, "embedder_no_decay": 1e-3, "head": 1e-3}
    )


def test_the_run_records_the_normalisation(adapted):
    run = load(adapted, "run")
    assert run.info["normalisation"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert run.config["embedder"]["mean"] is None
    assert run.parents.keys() == {"store", "backbone_weights"}


def test_interrupted_run_continues_with_adapters_and_average(adapted, tmp_path, capsys):
    short = ["callbacks=[ema,export_only]", "callbacks.ema.decay=0.5", "callbacks.export=null"]
    first = run_in(tmp_path, "test_vit", "trainer.max_epochs=1", *short)
    resumed = ["train", *LORA, "backbone_weights.file=weights.pt", "resume=true", *short]
    assert main_in(tmp_path, *resumed, "trainer.max_epochs=2") == 0
    whole, again = (
        read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"] for run in (adapted, first)
    )
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    capsys.readouterr()
    assert main_in(tmp_path, *resumed, "trainer.max_epochs=3", "optimizer.layer_decay=1.0") == 2
    assert "resume with the run's optimizer.layer_decay" in capsys.readouterr().err


def main_in(folder: Path, *arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return main([*arguments])


def answer(run: Path, folder: Path) -> dict[str, object]:
    """Package a run for a server, and answer for its first golden image."""
    settings = parse_arguments([f"run_dir={run}", f"deploy.model_store={folder}"]).settings
    folder.mkdir()
    contents = collect(run, settings, force=True)
    with zipfile.ZipFile(write_archive(contents, folder, contents.new_version())) as packed:
        packed.extractall(folder / "unpacked")
    handler = yaml.safe_load((folder / "unpacked/model-config.yaml").read_bytes())["handler"]
    image = np.load(run / "golden.npz")["images"][0]
    predictor = Predictor(folder / "unpacked", handler)
    (response,) = predictor.predict([PredictRequest(encode_png(image), "1")])
    return json.loads(response.body)


@pytest.mark.parametrize("model", ["test_vit", "test_convnext", "test_resnet"])
def test_tuned_model_is_served(model, request, tmp_path):
    run = (
        request.getfixturevalue("adapted") if model == "test_vit"
        else run_in(tmp_path, model, "trainer.max_epochs=1")
    )  # fmt: skip
    found = answer(run, tmp_path / "models")
    assert found["label"] in (0, 1)
    # The answer is that of the embedding which the trained network computes itself.
    stored = np.load(run / "golden.npz")["embeddings"][0]
    gallery = np.load(run / "gallery/embeddings-00000.npy")
    assert found["similarity"] == pytest.approx(float((gallery @ stored).max()), abs=1e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backbone.lora.rank=2", "backbone.lora.modules=[abc]"], "layers named abc"),
        (["backbone.lora.rank=-1"], "backbone.lora.rank=-1"),
        (["backbone.lora.rnk=1"], "did you mean backbone.lora.rank"),
        (["backbone_weights.pretrained=true"], "hf download timm/test_vit.r160_in1k"),
        (
            ["backbone_weights.pretrained=true", "backbone_weights.file=x.pt"],
            "backbone_weights.file=x.pt",
        ),
        (["data.image_size=40"], "40x40 is not a multiple"),
    ],
)
def test_bad_input_is_one_message_before_any_work(
    lora_extra, in_tmp, capsys, monkeypatch, overrides, message
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    plain = [*FEW, "backbone=timm", "backbone.model=test_vit"]
    assert main(["train", *plain, *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(in_tmp.iterdir()) == []


def test_published_weights_come_from_the_cache(lora_extra, in_tmp, capsys, monkeypatch):
    """Without a connection; the cache has the layout of huggingface_hub."""
    from safetensors.torch import save_file

    cached = in_tmp / "hub/models--timm--test_resnet.r160_in1k"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("a" * 40)
    (cached / "snapshots" / ("a" * 40)).mkdir(parents=True)
    save_file(random_weights("test_resnet", in_tmp / "w.pt"),
              cached / "snapshots" / ("a" * 40) / "model.safetensors")  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(in_tmp / "hub"))
    run = [*FEW, "backbone=timm", "backbone.model=test_resnet", "backbone_weights.pretrained=true"]
    assert main(["train", *run, "callbacks=export_only", "trainer.max_epochs=1"]) == 0
    assert "90 of 90 tensors fit" in capsys.readouterr().err
    assert main(["lineage", "run"]) == 0
    assert "published weights of test_resnet" in capsys.readouterr().out


def test_missing_peft_is_an_error_before_any_work(in_tmp, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "peft" else find(name, *a)
    )
    assert main(["train", *LORA]) == 2
    assert "pip install 'arcloop[lora]'" in capsys.readouterr().err
    assert list(in_tmp.iterdir()) == []
