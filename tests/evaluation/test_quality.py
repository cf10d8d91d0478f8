"""The norm of the features of a MagFace model, from training to the answers of a server."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tests.conftest import SMALL

from arcloop.artifacts.metrics import read_metrics
from arcloop.cli.main import main
from arcloop.data import Store
from arcloop.evaluation import load_query_results
from arcloop.pipeline.chains import find_store
from arcloop.runtime.images import encode_png
from arcloop.runtime.predictor import Predictor, PredictRequest
from arcloop.runtime.searcher import Model, Searcher, read_index, read_labels
from arcloop.serving.archive import collect, write_archive
from arcloop.serving.deploy import parse_arguments

RUN = Path("runs/synthetic")


@pytest.fixture(scope="module")
def magface(tmp_path_factory):
    """Work in a folder with a finished run of MagFace, and return its query images and norms."""
    folder = tmp_path_factory.mktemp("magface")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        hard = ["head=magface", "data.noise=1.0", "trainer.max_epochs=1"]
        assert main(["run", *SMALL, *hard, "evaluate.gate.min_top1=null"]) == 0
        images_NHWC, _ = Store.open(find_store(RUN)).gather("query", np.arange(70))
        scripted = torch.jit.load(RUN / "model.pt").eval()
        with torch.inference_mode():
            features = scripted.features(torch.from_numpy(images_NHWC).permute(0, 3, 1, 2))
        yield images_NHWC, np.sqrt((features.double().numpy() ** 2).sum(axis=1))


def test_model_returns_the_norm_with_the_embedding(magface):
    images_NHWC, expected = magface
    model = Model(RUN / "model.pt")
    embeddings, quality = model.embed_with_quality(images_NHWC)
    assert quality == pytest.approx(expected, rel=1e-5)
    assert quality.dtype == embeddings.dtype == np.float32
    scripted = torch.jit.freeze(torch.jit.load(RUN / "model.pt").eval())
    with torch.inference_mode():
        forward = scripted(torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(embeddings, forward, atol=1e-6)
    np.testing.assert_array_equal(model.embed(images_NHWC), embeddings)


def test_evaluation_rejects_the_images_of_lowest_quality(magface):
    images_NHWC, norms = magface
    model = Model(RUN / "model.pt")
    gallery = np.concatenate([np.load(f) for f in sorted(RUN.glob("gallery/embeddings-*"))])
    labels = np.concatenate([np.load(f) for f in sorted(RUN.glob("gallery/labels-*"))])
    _, expected = Store.open(find_store(RUN)).gather("query", np.arange(70))
    wrong = labels[(model.embed(images_NHWC) @ gallery.T).argmax(axis=1)] != expected
    metrics = read_metrics(RUN / "evaluation")
    assert 0 < wrong.mean() == pytest.approx(1 - metrics["top1"])
    for percent in (10, 20):
        kept = norms.argsort()[70 * percent // 100 :]
        name = f"error_at_reject_{percent}pct"
        assert metrics[name] == pytest.approx(wrong[kept].mean())
    stored = load_query_results(RUN / "evaluation").quality
    assert stored == pytest.approx(norms, rel=1e-5)
    assert (RUN / "evaluation/error_versus_reject.png").is_file()
    page = (RUN / "evaluation/report.html").read_text()
    assert "Error at 10% reject" in page
    assert "<h2>Quality</h2>" in page


def test_query_and_servers_answer_with_the_quality(magface, tmp_path, capsys):
    images_NHWC, norms = magface
    Path("query.png").write_bytes(encode_png(images_NHWC[3]))
    assert main(["query", "query.png", "--run", str(RUN), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quality"] == pytest.approx(norms[3], rel=1e-5)
    assert main(["query", "query.png", "--run", str(RUN)]) == 0
    assert f"quality {norms[3]:.2f}" in capsys.readouterr().out
    settings = parse_arguments([f"run_dir={RUN}"]).settings
    contents = collect(RUN, settings, force=False)
    with zipfile.ZipFile(write_archive(contents, tmp_path, contents.new_version())) as packed:
        packed.extractall(tmp_path / "unpacked")
    handler = yaml.safe_load((tmp_path / "unpacked/model-config.yaml").read_bytes())["handler"]
    predictor = Predictor(tmp_path / "unpacked", handler)
    (response,) = predictor.predict([PredictRequest(Path("query.png").read_bytes())])
    assert json.loads(response.body)["quality"] == pytest.approx(norms[3], rel=1e-5)


def test_other_heads_have_no_quality(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    metrics = read_metrics(RUN / "evaluation")
    assert not any("reject" in name for name in metrics)
    assert not (RUN / "evaluation/error_versus_reject.png").exists()
    images_NHWC, _ = Store.open(find_store(RUN)).gather("query", np.arange(1))
    model = Model(RUN / "model.pt")
    assert model.embed_with_quality(images_NHWC)[1] is None
    assert (
        "quality"
        not in Searcher(
            model,
            read_index(RUN / "index/faiss_index.bin"),
            read_labels(RUN / "index/faiss_label.json"),
        )
        .predict(images_NHWC)[0]
        .as_dict()
    )
    scripted = torch.jit.load(RUN / "model.pt").eval()
    embeddings, _ = scripted.embed_with_norm(torch.from_numpy(images_NHWC).permute(0, 3, 1, 2))
    np.testing.assert_allclose(embeddings.detach(), model.embed(images_NHWC), atol=1e-6)
