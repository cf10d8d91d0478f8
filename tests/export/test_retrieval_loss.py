"""The gate of compact formats: what is measured, and that a loss above the bound is refused."""

import json
import shutil

import numpy as np
import pytest
import torch

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.config.composition import build_node
from arcloop.data import Store
from arcloop.errors import ArtifactError
from arcloop.export import OnnxFp16Format
from arcloop.export.retrieval_loss import measure_retrieval
from arcloop.export.run import export_run
from arcloop.pipeline.chains import find_store
from arcloop.retrieval import Gallery
from arcloop.runtime.runtimes import OnnxModel
from arcloop.runtime.searcher import Model

RUN = "runs/synthetic"


@pytest.mark.parametrize("name", ["onnx_fp16", "onnx_int8"])
def test_compact_export_records_its_results_on_the_query_split(work, name):
    """Compared with brute force: gallery of the model, queries of the exported file."""
    assert main(["export", f"run_dir={RUN}", f"export={name}"]) == 0
    made = artifacts.load(work / RUN / "export", "export")
    (file,) = made.info
    facts, store = made.info[file], Store.open(find_store(work / RUN))
    assert made.parents["store"] == store.artifact.sha256
    model = Model(work / RUN / "model.pt")
    served = OnnxModel(made.path / file, model.sizes(), model.sha256, 1)
    ((images_NHWC, truth),) = store.batches("query", 1000)
    gallery = np.load(work / RUN / "gallery/embeddings-00000.npy").astype(np.float64)
    labels = store.labels("gallery")
    for one, prefix in ((served, ""), (model, "model")):
        similarities = one.embed(images_NHWC).astype(np.float64) @ gallery.T
        nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :5]
        hits = labels[nearest] == truth[:, None]
        top1, recall = hits[:, 0].mean(), hits.any(axis=1).mean()
        if prefix:
            top1, recall = top1 - facts["top1_loss"], recall - facts["recall_at_5_loss"]
        assert (facts["top1"], facts["recall_at_5"]) == pytest.approx((top1, recall))
    golden, run = (
        np.load(made.path / file.replace(".onnx", ".golden.npz")),
        np.load(work / RUN / "golden.npz"),
    )
    np.testing.assert_array_equal(golden["images"], run["images"])
    np.testing.assert_allclose(golden["embeddings"], served.embed(run["images"]), atol=1e-5)
    assert (
        0
        < np.abs(golden["embeddings"] - run["embeddings"]).max()
        == pytest.approx(facts["max_abs_diff"])
    )


class Wrong(OnnxFp16Format):
    """A format that writes the network with other weights."""

    def write(self, embedder, path, calibration_NCHW=None):
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in embedder.parameters():
                parameter.normal_()
        super().write(embedder, path)


@pytest.mark.parametrize("gallery", [True, False])
def test_format_that_loses_more_than_its_bound_is_refused_with_numbers(work, gallery):
    run = work / RUN
    recorded = artifacts.read(run, "run").config
    parts = {name: build_node(recorded[name]) for name in ("backbone", "embedder")}
    if not gallery:  # as after callbacks=export_only
        shutil.rmtree(run / "gallery")
    wrong = {
        "onnx_fp16": Wrong(opset=17, max_abs_diff=10.0, max_top1_loss=0.2, max_recall_loss=1.0)
    }
    with pytest.raises(ArtifactError, match=r"top1 on .* falls from [01]\.\d+ to 0\.\d+, by more"):
        export_run(run, wrong, run / "export", **parts, store=find_store(run))
    assert not (run / "export").exists()
    assert (run / "gallery").exists() == gallery


def test_gallery_that_was_not_embedded_gives_the_same_results(work):
    store, model = Store.open(find_store(work / RUN)), Model(work / RUN / "model.pt")
    metrics = json.loads((work / RUN / "evaluation/metrics.json").read_bytes())
    found = measure_retrieval(model, Gallery(work / RUN / "gallery"), store)
    assert found == pytest.approx({name: metrics[name] for name in ("top1", "recall_at_5")})


def test_shortened_index_is_checked_with_shortened_embeddings(work):
    assert main(["index", f"run_dir={RUN}", "index.dim=3"]) == 0
    assert main(["evaluate", f"run_dir={RUN}"]) in (0, 3)  # 3: the gate did not pass
    metrics = json.loads((work / RUN / "evaluation/metrics.json").read_bytes())
    bounds = [f"export.onnx_fp16.max_{name}_loss=1" for name in ("top1", "recall")]
    assert main(["export", f"run_dir={RUN}", "export=onnx_fp16", *bounds]) == 0
    (facts,) = artifacts.load(work / RUN / "export", "export").info.values()
    for name in ("top1", "recall_at_5"):
        assert facts[name] + facts[f"{name}_loss"] == pytest.approx(metrics[name])


def test_compact_export_without_the_store_is_an_error(work, capsys):
    shutil.rmtree(work / "stores")
    assert main(["export", f"run_dir={RUN}", "export=onnx_int8"]) == 1
    assert "the store of the run was not found" in capsys.readouterr().err
    assert main(["export", f"run_dir={RUN}", "export=onnx"]) == 0  # needs no store
