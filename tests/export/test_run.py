"""Export to extra formats from the command line, during `train` or with `export`."""

import json

import pytest
from tests.conftest import SMALL

from arcloop import artifacts
from arcloop.artifacts.atomic import sha256_file
from arcloop.cli.main import main

RUN = "runs/synthetic"
QUICK = [*SMALL, "trainer.max_epochs=1", "callbacks=export_only"]


def test_finished_run_is_exported_without_training(work, capsys):
    before = sha256_file(work / RUN / "manifest.json")
    assert main(["export", f"run_dir={RUN}", "export=all"]) == 0
    made = artifacts.load(work / RUN / "export", "export")
    assert set(made.files) == {"model.onnx", "model.pt2"}
    model = artifacts.read(work / RUN, "run").file_sha256("model.pt")
    assert made.parents == {"model": model}
    assert all(0 <= fact["max_abs_diff"] <= 1e-5 for fact in made.info.values())
    assert {"onnx", "onnxruntime"} < made.info["model.onnx"].keys()
    assert sha256_file(work / RUN / "manifest.json") == before
    capsys.readouterr()
    assert main(["lineage", f"{RUN}/export/model.onnx"]) == 0
    assert f"model of {RUN}" in capsys.readouterr().out


def test_run_adds_a_format_to_a_finished_run(work):
    before = sha256_file(work / RUN / "manifest.json")
    assert main(["run", *SMALL, "export=onnx"]) == 0
    assert sha256_file(work / RUN / "manifest.json") == before
    made = artifacts.load(work / RUN / "export", "export")
    assert main(["run", *SMALL, "export=onnx"]) == 0
    assert artifacts.read(work / RUN / "export", "export").sha256 == made.sha256


def test_failed_export_keeps_the_run_and_names_the_next_command(in_tmp, capsys):
    strict = "export.onnx.max_abs_diff=1e-30"
    assert main(["train", *QUICK, "export=onnx", strict]) == 1
    error = capsys.readouterr().err
    assert "the run is trained and complete" in error
    assert f"arcloop export run_dir={RUN}" in error
    run = artifacts.load(in_tmp / RUN, "run")
    assert not (in_tmp / RUN / "export").exists()
    assert main(["export", f"run_dir={RUN}"]) == 1  # with the settings of the run
    assert (
        main(["export", f"run_dir={RUN}", "export=onnx"]) == 0
    )  # with the defaults of export=onnx
    assert artifacts.read(in_tmp / RUN, "run").sha256 == run.sha256


ODD = """
import torch

class Odd(torch.nn.Module):
    def __init__(self, *, in_channels: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return torch.special.digamma(x[:, :, ::4, ::4] * self.weight + 10)
"""
WRONG = {
    "unknown opset": (["export=onnx", "export.onnx.opset=99"], "must be less than or equal to 20"),
    "opset of a wrong type": (["export=onnx", "export.onnx.opset=x"], "must be an int"),
    "unknown format": (["export=onx"], "did you mean onnx"),
    "bound out of range": (
        ["export=onnx", "export.onnx.max_abs_diff=0"],
        "must be greater than 0",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_value_is_an_error_before_any_work(in_tmp, capsys, case):
    arguments, message = WRONG[case]
    assert main(["train", *SMALL, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "remedy:" in error
    assert not list(in_tmp.iterdir())


def test_network_without_onnx_operators_is_an_error_before_training(in_tmp, monkeypatch, capsys):
    (in_tmp / "odd_network.py").write_text(ODD)
    monkeypatch.syspath_prepend(in_tmp)
    small = [override for override in SMALL if not override.startswith("backbone.")]
    network = ["~backbone.widths", "~backbone.depth", "backbone._target_=odd_network.Odd"]
    assert main(["train", *small, *network, "export=onnx"]) == 2
    error = capsys.readouterr().err
    assert "aten::digamma" in error
    assert "remedy:" in error
    assert not (in_tmp / RUN).exists()


def test_export_without_a_format_is_an_error(work, capsys):
    assert main(["export", f"run_dir={RUN}"]) == 2
    assert "choose a format, e.g. export=onnx" in capsys.readouterr().err


def test_changed_model_is_not_exported(work, capsys):
    model = work / RUN / "model.pt"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert main(["export", f"run_dir={RUN}", "export=onnx"]) == 1
    assert "model.pt" in capsys.readouterr().err


def test_config_of_another_network_is_an_error(work, capsys):
    """The weights of model.pt do not fit the config in the manifest."""
    manifest = work / RUN / "manifest.json"
    content = json.loads(manifest.read_bytes())
    content["config"]["backbone"]["widths"] = [4, 4]
    manifest.write_text(json.dumps(content))
    assert main(["export", f"run_dir={RUN}", "export=onnx"]) == 1
    assert "does not fit the backbone" in capsys.readouterr().err
