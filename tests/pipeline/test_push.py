"""`arcloop push`: a finished run as a hub folder, with a model card."""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from tests.conftest import SMALL, arcloop_in

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.data import Store
from arcloop.errors import ConfigError
from arcloop.export import hub
from arcloop.export.hub import read_hub
from arcloop.pipeline import push
from arcloop.pipeline.chains import find_store
from arcloop.retrieval import load_model, open_index
from arcloop.runtime.searcher import Searcher

RUN = Path("runs/synthetic")


def front_matter(folder):
    _, head, text = (folder / "README.md").read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_pushed_run_answers_queries_like_the_run(work):
    assert main(["push", str(RUN), "--to", "hub/model", "--index"]) == 0
    shutil.move("hub/model", "elsewhere")
    found = read_hub(Path("elsewhere"), "cpu")
    model = load_model(RUN / "model.pt", "cpu")
    images, _ = Store.open(find_store(RUN)).gather("query", np.arange(20))
    np.testing.assert_allclose(found.model.embed(images), model.embed(images), atol=1e-6)
    _, index, labels = open_index(RUN / "index", model.sha256)
    expected = Searcher(model, index, labels).predict(images)
    for one, other in zip(found.searcher.predict(images), expected, strict=True):
        assert (one.label, one.class_name, one.unknown) == (
            other.label, other.class_name, other.unknown,
        )  # fmt: skip
        assert one.similarity == pytest.approx(other.similarity, abs=1e-6)
    assert found.classes == labels["classes"]
    assert (
        found.metrics["top1"] == json.loads((RUN / "evaluation/metrics.json").read_bytes())["top1"]
    )
    assert found.config["head"]["margin"] == artifacts.read(RUN, "run").config["head"]["margin"]


def test_the_card_has_metrics_data_limits_and_license(work, lora_extra):
    assert main(["push", str(RUN), "--to", "hub", "--license", "apache-2.0"]) == 0
    head, text = front_matter(Path("hub"))
    metrics = json.loads((RUN / "evaluation/metrics.json").read_bytes())
    assert head["license"] == "apache-2.0"
    assert (head["library_name"], head["pipeline_tag"]) == ("arcloop", "image-feature-extraction")
    (result,) = head["model-index"][0]["results"]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values["top1"] == pytest.approx(metrics["top1"], abs=1e-6)
    low, high = metrics["intervals"]["top1"]
    assert f"| Top-1 | {metrics['top1']:.2%} | {low:.2%} to {high:.2%} |" in text
    for line in ("| classes | 3, of which 3 are in train |", "| images in query | 70 |",
                 "- Only 70 images were used", "margin: 0.3"):  # fmt: skip
        assert line in text
    assert "No license" not in text
    assert "model.search" not in text
    assert str(work) not in text + (work / "hub/config.json").read_text()
    assert not (work / "hub/index").exists()

    from huggingface_hub import ModelCard

    card = ModelCard.load("hub/README.md")
    assert {found.metric_type for found in card.data.eval_results} == values.keys()


def test_a_gate_that_was_not_passed_is_a_limit(work):
    assert main(["evaluate", f"run_dir={RUN}", "evaluate.gate.min_top1=1"]) == 3
    assert main(["push", str(RUN), "--to", "hub"]) == 0
    head, text = front_matter(Path("hub"))
    (reason,) = json.loads((RUN / "evaluation/gate.json").read_bytes())["reasons"]
    assert f"- The model did not pass its gate: {reason}" in text
    assert "- No license was given." in text
    assert "license" not in head
    shutil.rmtree(RUN / "evaluation")
    shutil.rmtree("stores")
    assert main(["push", str(RUN), "--to", "hub"]) == 0
    head, text = front_matter(Path("hub"))
    assert "model-index" not in head
    assert "- The model was not evaluated." in text


def contents(folder):
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_folder_with_other_files_is_not_replaced(work, capsys, monkeypatch):
    Path("mine").mkdir()
    Path("mine/README.md").write_text("my notes")
    assert main(["push", str(RUN), "--to", "mine"]) == 1
    assert "was not written by `arcloop push`" in capsys.readouterr().err
    assert main(["push", str(RUN), "--to", "hub"]) == 0
    (work / "hub/.git").mkdir()
    assert main(["push", str(RUN), "--to", "hub"]) == 1
    assert "contains .git" in capsys.readouterr().err
    (work / "hub/.git").rmdir()
    before = contents(work / "hub")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(push, "write_card", fail)
        assert main(["push", str(RUN), "--to", "hub", "--index"]) == 1
    assert contents(work / "hub") == before
    assert sorted(path.name for path in work.iterdir()) == ["hub", "mine", "runs", "stores"]
    assert main(["push", str(RUN), "--to", "hub", "--index"]) == 0
    assert (work / "hub/index/manifest.json").exists()
    assert Path("mine/README.md").read_text() == "my notes"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--license", "My License"], "not the identifier of a license"),
        (["--repo", "name"], "not the name of a repository"),
        (["--repo", "user/name"], "pip install 'arcloop[hub]'"),
    ],
)
def test_wrong_options_are_reported_before_work(work, capsys, options, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["push", str(RUN), "--to", "hub", *options]) == 2
    assert message in capsys.readouterr().err
    assert not Path("hub").exists()


def test_a_failed_upload_keeps_the_folder(work, capsys, lora_extra, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["push", str(RUN), "--to", "hub", "--repo", "user/name"]) == 1
    error = capsys.readouterr().err
    assert "the upload failed" in error
    assert "hub is complete" in error
    assert "hf download user/name --local-dir hub" in (work / "hub/README.md").read_text()


NET = """
from arcloop.models import ConvNet

class Net(ConvNet):
    pass
"""


def test_a_class_of_a_project_is_named_if_it_is_missing(in_tmp):
    """The run records its project; the hub folder names its classes."""
    files = {
        "shop/pyproject.toml": "[tool.arcloop]\n",
        "shop/conf/backbone/net.yaml": "defaults: [convnet]\n_target_: hub_shop.Net\n",
        "shop/src/hub_shop.py": NET,
    }
    for name, content in files.items():
        (in_tmp / name).parent.mkdir(parents=True, exist_ok=True)
        (in_tmp / name).write_text(content)
    small = [override for override in SMALL if override != "trainer.max_epochs=2"]
    arcloop_in(in_tmp / "shop", "train", *small, "trainer.max_epochs=1", "backbone=net",
               "callbacks=export_only", "run_dir=runs/net")  # fmt: skip
    sys.modules.pop("hub_shop")
    with contextlib.chdir(in_tmp):
        assert main(["push", "shop/runs/net", "--to", "hub"]) == 0
    sys.modules.pop("hub_shop", None)
    with pytest.raises(ConfigError, match=r"hub_shop.Net cannot be imported.*'hub_shop'"):
        read_hub(in_tmp / "hub", "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCLOOP_PROJECT", str(in_tmp / "shop"))
        assert read_hub(in_tmp / "hub", "cpu").model.embedding_dim == 16
    sys.modules.pop("hub_shop", None)
    assert hub.is_hub_folder(in_tmp / "hub")
