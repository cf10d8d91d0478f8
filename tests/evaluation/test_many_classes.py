"""Evaluation and report of many classes: nothing grows with their number times the queries."""

import base64
import gzip
import json
import re
import tracemalloc
from functools import partial

import faiss
import numpy as np
import pytest
from tests.evaluation.conftest import cut, settings

from arcloop.display import plotting
from arcloop.evaluation import EvaluationSetup, evaluate_embeddings, write_report
from arcloop.evaluation.metrics import clustering
from arcloop.runtime.searcher import search

ROWS = 4000


def names(classes):
    return [f"class {label:04d}" for label in range(classes)]


def evaluated(classes):
    """Evaluate 4,000 queries against 4,000 rows; return the result and the peak memory in MiB."""
    random = np.random.default_rng(0)
    labels = np.arange(ROWS) % classes

    def draw():
        rows = random.standard_normal((classes, 16))[labels] + random.standard_normal((ROWS, 16))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    gallery, queries = draw(), draw()
    index = faiss.IndexFlatIP(16)
    index.add(gallery)
    setup = EvaluationSetup(
        gallery=partial(cut, gallery, labels, [500]), gallery_labels=labels,
        search=partial(search, index), classes=names(classes),
        settings=settings(
            batch_size=500, memory_mb=16, max_pairs=10**6, num_mistakes=2, num_projected=0,
            max_clustered=2000,
        ),
        threshold=0.0, num_queries=ROWS,
    )  # fmt: skip
    clustering.clustering_metrics(gallery[:4], np.array([0, 0, 1, 1]))  # imports sklearn
    tracemalloc.start()
    try:
        result = evaluate_embeddings(cut(queries, labels, [500]), setup)
        return result, tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clustering, "MAX_CLASSES", 50)
        patch.setattr(plotting, "DPI", 20)  # small pictures, which are drawn fast
        result, peak = evaluated(ROWS // 2)
        write_report(
            folder, result, title="many", classes=names(ROWS // 2), curves=[], facts=[],
            config_yaml="", image=lambda *_: np.zeros((8, 8, 1), np.uint8), lineage=[],
            gate={"passed": True, "reasons": []},
        )  # fmt: skip
    return folder, result, peak


def test_no_array_has_a_cell_for_each_query_and_class(many):
    """As int64, it would need 61 MiB, and one of classes x classes 30 MiB."""
    assert many[2] < 20


def test_the_page_lists_all_classes_worst_first(many):
    folder, result, _ = many
    text = (folder / "report.html").read_text(encoding="utf-8")
    packed = re.search(r'data-rows="([^"]+)"', text).group(1)
    rows = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert sorted(row[0] for row in rows) == names(ROWS // 2)
    accuracies = [1 - wrong / queries for _, wrong, queries, _ in rows]
    assert accuracies == sorted(accuracies)
    assert np.mean(accuracies) == pytest.approx(result.metrics["mean_class_accuracy"])
    body = re.search("<tbody>(.*?)</tbody>", text, re.DOTALL).group(1)
    assert body.count("<tr>") == 20
    assert re.search('<td class="text">([^<]+)</td>', body).group(1) == rows[0][0]
    assert len((folder / "classes.csv").read_text().splitlines()) == 1 + len(rows)


def test_of_many_classes_some_are_clustered(many):
    """All images of 50 classes, which are as similar to each other as in the whole set."""
    assert {"nmi", "ami"} <= many[1].metrics.keys()
    labels = np.repeat(np.arange(200), 2)
    rows = np.eye(200, dtype=np.float32)[labels]
    found = clustering.clustering_metrics(rows, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clustering, "MAX_CLASSES", 50)
        patch.setattr(clustering, "kmeans", lambda rows, k: rows.argmax(axis=1) * (k == 50))
        assert clustering.clustering_metrics(rows, labels) == found == {"nmi": 1.0, "ami": 1.0}
