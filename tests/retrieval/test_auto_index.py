import json

import faiss
import numpy as np
import pytest
from tests.retrieval.conftest import write_gallery

from arcloop import artifacts
from arcloop.config.composition import build, compose_config
from arcloop.errors import ConfigError
from arcloop.runtime.searcher import search

DIM = 16


def clustered(rows, seed):
    centres = np.random.default_rng(0).standard_normal((200, DIM))
    random = np.random.default_rng(seed)
    rows_ND = centres[random.integers(0, 200, rows)] + 0.5 * random.standard_normal((rows, DIM))
    return (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)).astype(np.float32)


def write(folder, rows_ND):
    labels_N = np.zeros(len(rows_ND), np.int64)
    return write_gallery(folder, [(rows_ND, labels_N)], *rows_ND.shape)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return write(tmp_path_factory.mktemp("auto") / "gallery", clustered(6000, seed=1))


def auto(gallery, *overrides):
    return build(compose_config(["index=auto", *overrides]), "index").build(gallery)


def recall_at_1(index, gallery):
    """Against a search in numpy and float64, by similarity: a tie is as good."""
    queries = clustered(500, seed=2).astype(np.float64)
    rows_ND = np.concatenate([e for e, _ in gallery.chunks()]).astype(np.float64)
    _, found = search(index, queries.astype(np.float32), 1)
    best = (queries @ rows_ND.T).max(1)
    return float(((queries * rows_ND[found[:, 0]]).sum(1) >= best - 1e-6).mean())


def test_a_small_gallery_is_searched_exactly(gallery):
    index, choice = auto(gallery)
    assert (choice["factory"], choice["search"], choice["recall_at_1"]) == ("Flat", {}, 1.0)
    assert recall_at_1(index, gallery) == 1.0


@pytest.mark.parametrize("recall", [0.9, 0.99])
def test_a_larger_gallery_is_searched_as_widely_as_the_recall_needs(gallery, recall):
    index, choice = auto(gallery, "index.flat_rows=1000", f"index.recall={recall}")
    assert choice["factory"] == "IVF153,PQ8x4fs,RFlat"
    assert recall_at_1(index, gallery) >= recall - 0.01
    assert choice["recall_at_1"] >= recall
    assert choice["search"]["nprobe"] < 153 / 8
    assert faiss.extract_index_ivf(index).nprobe == choice["search"]["nprobe"]
    json.dumps(choice)


def test_a_higher_recall_needs_a_wider_search(gallery):
    searches = [
        auto(gallery, "index.flat_rows=1000", f"index.recall={recall}")[1]["search"]
        for recall in (0.5, 0.9, 0.99)
    ]
    widths = [search["nprobe"] * search["k_factor_rf"] for search in searches]
    assert widths == sorted(set(widths))


@pytest.mark.parametrize(
    ("bytes_per_vector", "factory"),
    [
        (66, "Flat"),
        (63, "IVF153,PQ8x4fs,Refine(SQfp16)"),
        (35, "IVF153,PQ8x4fs,Refine(SQ8)"),
        (1, "IVF153,PQ8x4fs"),
    ],
)
def test_the_index_is_as_exact_as_the_memory_allows(gallery, capsys, bytes_per_vector, factory):
    limit = f"index.memory_mb={6000 * bytes_per_vector / 2**20}"
    index, choice = auto(gallery, limit)
    assert choice["factory"] == factory
    assert faiss.serialize_index(index).nbytes / 6000 <= max(bytes_per_vector, 24) * 1.1
    assert choice["why"] in capsys.readouterr().err
    assert ("may be below" in choice["why"]) == (choice["recall_at_1"] < 0.997)


def test_exact_search_if_no_approximate_search_reaches_the_recall(tmp_path):
    random = np.random.default_rng(0).standard_normal((3000, DIM)).astype(np.float32)
    noise = write(tmp_path / "g", random / np.linalg.norm(random, axis=1, keepdims=True))
    _, choice = auto(noise, "index.flat_rows=100", "index.recall=1.0")
    assert choice["factory"] == "Flat"
    assert "no approximate search reaches a recall of 1.0" in choice["why"]


def test_any_of_several_equal_rows_counts_as_found(tmp_path):
    copies = np.repeat(clustered(400, seed=3), 10, axis=0)
    _, choice = auto(write(tmp_path / "g", copies), "index.flat_rows=100")
    assert choice["recall_at_1"] == 1.0
    assert choice["search"]["nprobe"] == 1


def test_the_same_gallery_gives_the_same_choice_and_bytes(gallery):
    (one, choice), (other, again) = (auto(gallery, "index.flat_rows=1000") for _ in range(2))
    assert choice == again
    assert np.array_equal(faiss.serialize_index(one), faiss.serialize_index(other))


def test_wrong_values_are_refused():
    for override in ("recall=1.1", "memory_mb=0", "flat_rows=0", "tune_queries=0"):
        with pytest.raises(ConfigError, match=override.partition("=")[0]):
            compose_config(["index=auto", f"index.{override}"])


def test_the_manifest_and_the_report_contain_the_choice(work, capsys):
    from arcloop.cli.main import main

    run = ["run_dir=runs/synthetic"]
    assert main(["index", *run, "index=auto", "index.flat_rows=50"]) == 0
    choice = artifacts.load(work / "runs/synthetic/index", "index").info["choice"]
    assert choice["why"] in capsys.readouterr().err
    assert main(["evaluate", *run]) == 0
    assert choice["factory"] in (work / "runs/synthetic/evaluation/report.html").read_text()
