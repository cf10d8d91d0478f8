"""Indexes of shortened embeddings, compared with brute force in float64."""

import json

import faiss
import numpy as np
import pytest
from tests.conftest import SMALL
from tests.retrieval.conftest import gallery, images

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.data import Store
from arcloop.errors import ConfigError
from arcloop.pipeline.chains import find_store
from arcloop.retrieval import AutoIndex, FaissIndex
from arcloop.runtime.searcher import Model, read_index, search

RUN = "runs/synthetic"
DIM = 5
BUILDERS = {
    "flat": FaissIndex(factory="Flat", search={}, train_rows=3000, dim=DIM),
    "hnsw": FaissIndex(factory="HNSW32,Flat", search={"efSearch": 64}, train_rows=3000, dim=DIM),
    "ivf": FaissIndex(factory="IVF8,Flat", search={"nprobe": 8}, train_rows=3000, dim=DIM),
    "auto": AutoIndex(
        recall=0.99, memory_mb=None, flat_rows=100, train_rows=3000, tune_queries=300, dim=DIM
    ),
}


def exact(embeddings, dim):
    short = embeddings.astype(np.float64)[:, :dim]
    return short / np.linalg.norm(short, axis=1, keepdims=True)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("memory_map", [False, True])
def test_stored_index_takes_full_embeddings_and_compares_shortened_ones(
    model, tmp_path, name, memory_map
):
    found = gallery(model, tmp_path / "g", images(2000))
    built, description = BUILDERS[name].build(found)
    assert description["dim"] == DIM
    faiss.write_index(built, str(tmp_path / "index"))
    index = read_index(tmp_path / "index", memory_map=memory_map)
    queries, rows = model.embed(images(200, seed=1)), np.concatenate([e for e, _ in found.chunks()])
    similarities, nearest = search(index, queries, 1)
    expected = exact(queries, DIM) @ exact(rows, DIM).T
    np.testing.assert_allclose(
        similarities[:, 0], expected[np.arange(200), nearest[:, 0]], rtol=0, atol=1e-5
    )
    best = expected.max(axis=1)
    assert (similarities[:, 0] >= best - 1e-5).mean() >= 0.98
    whole = (queries.astype(np.float64) @ rows.astype(np.float64).T).max(axis=1)
    assert np.abs(best - whole).max() > 1e-3  # so that the comparison finds a missing truncation


def test_shortened_index_is_smaller(model, tmp_path):
    found = gallery(model, tmp_path / "g", images(2000))
    sizes = {
        dim: len(
            faiss.serialize_index(
                FaissIndex(factory="Flat", search={}, train_rows=1, dim=dim).build(found)[0]
            )
        )
        for dim in (None, 8)
    }
    assert sizes[8] < 0.3 * sizes[None]


@pytest.mark.parametrize("name", ["flat", "auto"])
def test_embeddings_that_are_not_longer_are_refused(model, tmp_path, name):
    found = gallery(model, tmp_path / "g", images(300))
    longer = type(BUILDERS[name])(**{**vars(BUILDERS[name]), "dim": 32})
    with pytest.raises(ConfigError, match=r"index\.dim=32 must be less than .*dim=32"):
        longer.build(found)


def test_too_many_dimensions_are_refused_before_training(in_tmp, capsys):
    for index in ("flat", "auto"):
        assert main(["train", *SMALL, f"index={index}", "index.dim=16"]) == 2
        assert "index.dim=16 must be less than embedder.embedding_dim=16" in capsys.readouterr().err
    assert not (in_tmp / RUN).exists()


def test_threshold_metrics_and_answers_are_of_the_shortened_embeddings(work, capsys):
    full = json.loads((work / RUN / "evaluation/metrics.json").read_bytes())
    full_labels = json.loads((work / RUN / "index/faiss_label.json").read_bytes())
    assert main(["index", f"run_dir={RUN}", f"index.dim={DIM}"]) == 0
    assert main(["evaluate", f"run_dir={RUN}"]) in (0, 3)  # 3: the gate did not pass
    metrics = json.loads((work / RUN / "evaluation/metrics.json").read_bytes())
    labels = json.loads((work / RUN / "index/faiss_label.json").read_bytes())
    index = artifacts.load(work / RUN / "index", "index")
    assert index.info["choice"]["dim"] == DIM
    assert metrics["index_recall_at_10"] == 1
    assert metrics["eer"] != full["eer"]
    assert labels["threshold"] != full_labels["threshold"]
    rows = exact(np.load(work / RUN / "gallery/embeddings-00000.npy"), DIM)
    store, embedder = Store.open(find_store(work / RUN)), Model(work / RUN / "model.pt")
    ((queries_NHWC, truth),) = store.batches("query", 1000)
    similarities = exact(embedder.embed(queries_NHWC), DIM) @ rows.T
    nearest = similarities.argmax(axis=1)
    right = store.labels("gallery")[nearest] == truth
    assert metrics["top1"] == pytest.approx(right.mean())
    unknown = similarities.max(axis=1) < labels["threshold"]
    assert metrics["unknown_rate"] == pytest.approx(unknown.mean(), abs=1.5 / len(unknown))
