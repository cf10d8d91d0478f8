import importlib

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.retrieval.conftest import gallery, images

from arcloop.artifacts.writer import write_artifact
from arcloop.errors import ArtifactError, ConfigError
from arcloop.retrieval import (
    FaissIndex,
    load_model,
    open_index,
    write_index,
)
from arcloop.retrieval.calibration import TRAINED, Calibration
from arcloop.runtime.searcher import search

CALIBRATION = Calibration(
    threshold=0.5, protocol=TRAINED, far=0.01, measured_far=0.01, num_queries=100
)


@given(
    rows=st.integers(1, 40),
    batch=st.integers(1, 50),
    shard=st.integers(1, 50),
    chunk=st.integers(1, 50),
)
@settings(max_examples=25, deadline=None)
def test_shards_contain_all_rows_in_order_for_any_sizes(
    model, tmp_path_factory, rows, batch, shard, chunk
):
    array = images(rows)
    found = gallery(model, tmp_path_factory.mktemp("g") / "g", array, batch=batch, shard_rows=shard)
    with pytest.MonkeyPatch.context() as patch:
        module = importlib.import_module("arcloop.retrieval.embed")  # the package has a function so
        patch.setattr(module, "_CHUNK_ROWS", chunk)
        chunks = list(found.chunks())
    assert max(len(e) for e, _ in chunks) <= min(shard, chunk)
    assert all(len(e) == len(labels) > 0 for e, labels in chunks)
    assert np.concatenate([labels for _, labels in chunks]).tolist() == found.labels.tolist()
    pixels = array.reshape(rows, -1).astype(np.float64) + 1
    expected = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    np.testing.assert_allclose(np.concatenate([e for e, _ in chunks]), expected, atol=1e-6)
    assert found.labels.tolist() == (np.arange(rows) % 5).tolist()
    assert found.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("factory", "search_parameters", "recall"),
    [
        ("Flat", {}, 1.0),
        ("IVF{nlist},Flat", {"nprobe": 16}, 0.9),
        ("HNSW32,Flat", {"efSearch": 64}, 0.95),
        ("IVF{nlist},PQ32np", {"nprobe": 32}, 0.5),
    ],
)
def test_every_index_agrees_with_brute_force(model, tmp_path, factory, search_parameters, recall):
    found = gallery(model, tmp_path / "g", images(3000))
    builder = FaissIndex(factory=factory, search=search_parameters, train_rows=10_000, dim=None)
    index, _ = builder.build(found)
    queries = model.embed(images(200, seed=1))
    similarities, rows = search(index, queries, 1)
    all_rows = np.concatenate([e for e, _ in found.chunks()])
    cosine = queries.astype(np.float64) @ all_rows.T.astype(np.float64)
    assert (rows[:, 0] == cosine.argmax(1)).mean() >= recall
    if factory == "Flat":
        np.testing.assert_allclose(similarities[:, 0], cosine.max(1), atol=1e-5)


def test_search_parameters_are_stored_in_the_file(model, tmp_path):
    found = gallery(model, tmp_path / "g", images(3000))
    settings = FaissIndex(
        factory="IVF{nlist},Flat", search={"nprobe": 7}, train_rows=3000, dim=None
    )
    write_index(settings.build(found)[0], found, tmp_path, list("abcde"), CALIBRATION)
    assert faiss.extract_index_ivf(faiss.read_index(str(tmp_path / "faiss_index.bin"))).nprobe == 7


def test_same_gallery_gives_the_same_bytes(model, tmp_path):
    found = gallery(model, tmp_path / "g", images(3000))
    for factory in ("Flat", "IVF{nlist},Flat", "IVF{nlist},PQ32np"):
        for name in "ab":
            builder = FaissIndex(factory=factory, search={}, train_rows=2000, dim=None)
            index, _ = builder.build(found)
            faiss.write_index(index, str(tmp_path / name))
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("factory", "parameters", "message"),
    [
        ("Nope", {}, "Nope"),
        ("Flat", {"nprobe": 3}, "nprobe"),
        ("IVF{nlist},Flat", {"nprob": 3}, "nprob"),
    ],
)
def test_a_misspelt_index_is_refused_at_construction(factory, parameters, message):
    with pytest.raises(ConfigError, match=message):
        FaissIndex(factory=factory, search=parameters, train_rows=100, dim=None)


def test_a_gallery_too_small_for_training_is_reported(model, tmp_path):
    found = gallery(model, tmp_path / "g", images(50))
    with pytest.raises(ConfigError, match="gallery of 50 images is too small to train"):
        FaissIndex(factory="IVF4096,Flat", search={}, train_rows=100, dim=None).build(found)


def test_index_of_another_model_is_refused(model, tmp_path):
    found = gallery(model, tmp_path / "g", images(10))
    index, _ = FaissIndex(factory="Flat", search={}, train_rows=1, dim=None).build(found)
    with write_artifact(tmp_path / "i", "index", config={}) as writer:
        write_index(index, found, writer.path, list("abcde"), CALIBRATION)
    open_index(tmp_path / "i", model.sha256)
    with pytest.raises(ArtifactError, match="another model"):
        open_index(tmp_path / "i", "0" * 64)


def test_missing_and_damaged_model(tmp_path):
    with pytest.raises(ArtifactError, match=r"no model\.pt"):
        load_model(tmp_path / "model.pt", "cpu")
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="not a scripted arcloop model"):
        load_model(tmp_path / "model.pt", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_an_unavailable_device_is_reported(tmp_path):
    with pytest.raises(ConfigError, match="no GPU is visible"):
        load_model(tmp_path / "model.pt", "cuda")
