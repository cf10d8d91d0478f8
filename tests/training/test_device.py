"""Devices, precision, compilation, and averaging of weights."""

import copy

import pytest
import torch
from tests.conftest import SMALL

from arcloop.cli.main import main
from arcloop.config.composition import build, compose_config
from arcloop.training import NODES, TrainingSetup
from arcloop.training.fit import cpu_has_bf16

TRAIN = ["train", *SMALL, "callbacks=export_only"]


def weights(run):
    return torch.jit.load(f"{run}/model.pt").state_dict()


def test_data_on_the_device_gives_the_same_model(in_tmp, capsys):
    assert main([*TRAIN, "run_dir=mapped"]) == 0
    assert main([*TRAIN, "run_dir=resident", "loader.on_device=true"]) == 0
    mapped, resident = weights("mapped"), weights("resident")
    assert all(torch.equal(mapped[name], resident[name]) for name in mapped)
    assert "1 x cpu, 32-true, batch 50, deterministic" in capsys.readouterr().err


def test_out_of_memory_is_one_message_with_remedies(in_tmp, monkeypatch, capsys):
    from arcloop.training.module import EmbeddingModule

    def training_step(self, batch, batch_idx):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(EmbeddingModule, "training_step", training_step)
    assert main(TRAIN) == 1
    error = capsys.readouterr().err.partition("error: ")[2]
    for part in ("batches of 50", "32-true", "loader.batch_size=25", "accumulate_grad_batches=2",
                 "precision=bf16-mixed", "on_device=false"):  # fmt: skip
        assert part in error


def test_averaged_weights_are_exported(in_tmp):
    """With a decay of 0 the average equals the weights; with 0.9 it differs."""
    assert main([*TRAIN, "run_dir=plain"]) == 0
    for name, decay in (("none", 0.0), ("slow", 0.9)):
        assert main([*TRAIN, f"run_dir={name}", "callbacks=ema", f"callbacks.ema.decay={decay}",
                     "callbacks.build_index=null", "callbacks.evaluate=null"]) == 0  # fmt: skip
    plain, none, slow = weights("plain"), weights("none"), weights("slow")
    assert all(torch.equal(plain[name], none[name]) for name in plain)
    assert not all(torch.equal(plain[name], slow[name]) for name in plain)


def test_run_with_another_average_is_another_run(in_tmp, capsys):
    assert main([*TRAIN, "run_dir=run"]) == 0
    assert main(["train", *SMALL, "run_dir=run", "callbacks=ema"]) == 2
    assert "another config" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_training_with_accumulated_and_clipped_gradients(in_tmp, precision):
    assert main([*TRAIN, f"trainer.precision={precision}", "trainer.accumulate_grad_batches=2",
                 "trainer.gradient_clip_val=1.0"]) == 0  # fmt: skip


def test_compiled_backbone_has_the_same_gradients_and_can_be_scripted():
    def gradients(compiled):
        config = compose_config(["backbone.widths=[4]", "backbone.depth=1"])
        nodes = {name: build(config, name) for name in NODES}
        setup = TrainingSetup(**nodes, seed=0, monitor="val_top1", compile=compiled)
        module = setup.make_module((8, 8, 1), 2).train()
        embedder = module.embedder
        assert (embedder.backbone._compiled_call_impl is not None) == compiled
        pixels = torch.linspace(0, 255, 256).sin().view(4, 1, 8, 8)
        module.head(embedder.features(pixels), torch.tensor([0, 1, 1, 0])).backward()
        torch.jit.script(copy.deepcopy(embedder))
        return {n: p.grad for n, p in embedder.named_parameters() if p.grad is not None}

    eager, compiled = gradients(compiled=False), gradients(compiled=True)
    assert eager.keys() == compiled.keys()
    # Compared as one vector: the gradient of a bias before a batch norm is only rounding error.
    difference = sum((compiled[name] - eager[name]).square().sum() for name in eager)
    assert difference < 1e-6 * sum(gradient.square().sum() for gradient in eager.values())


def test_averaging_with_a_sharded_head_is_an_error(in_tmp, capsys):
    assert main(["train", *SMALL, "callbacks=ema", "head=arcface_sharded"]) == 2
    assert "cannot be averaged" in capsys.readouterr().err


def test_trainer_auto_uses_the_available_device(in_tmp, capsys):
    # On a machine without a GPU, a run with accelerator=cpu prints the same.
    assert compose_config(["trainer=auto"]).trainer.accelerator == "auto"
    assert main([*TRAIN, "trainer=auto", "run_dir=run"]) == 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.backends.mps.is_available():
        device = "mps"
    error = capsys.readouterr().err
    assert f"1 x {device}, 32-true, batch 50, deterministic where possible" in error


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, True), ({"bf16": True}, True), ({"avx2": True}, False), (None, None)],
)
def test_bf16_is_detected_on_any_platform(monkeypatch, capabilities, expected):
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert cpu_has_bf16() is expected


@pytest.mark.parametrize(("bf16", "noted"), [(False, True), (True, False), (None, False)])
def test_note_about_slow_bf16(in_tmp, capsys, monkeypatch, bf16, noted):
    monkeypatch.setattr("arcloop.training.fit.cpu_has_bf16", lambda: bf16)
    assert main([*TRAIN, "trainer.precision=bf16-mixed", "trainer.max_epochs=1"]) == 0
    assert ("this CPU has no bf16 instructions" in capsys.readouterr().err) == noted
