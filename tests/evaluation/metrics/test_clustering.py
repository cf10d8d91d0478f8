"""k-means and clustering metrics on separated classes and on noise."""

import numpy as np
import pytest

from arcloop.evaluation.metrics.clustering import clustering_metrics, kmeans


def points(noise, rows=120):
    random = np.random.default_rng(0)
    labels = np.arange(rows) % 4
    embeddings = np.eye(8, dtype=np.float32)[labels]
    embeddings += noise * random.standard_normal(embeddings.shape).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings, labels


def test_separated_classes_are_found_and_noise_is_not():
    assert clustering_metrics(*points(0.05)) == {"nmi": 1.0, "ami": pytest.approx(1.0)}
    noise = clustering_metrics(*points(20))
    assert abs(noise["ami"]) < 0.1
    assert noise["ami"] < noise["nmi"]


def test_the_same_rows_give_the_same_clusters():
    embeddings, _ = points(0.5)
    first, again = (kmeans(embeddings, 4) for _ in range(2))
    assert first.tolist() == again.tolist()
    assert len(set(first.tolist())) == 4


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], []])
def test_no_metrics_without_two_classes_or_two_rows_of_a_class(labels):
    embeddings = np.ones((len(labels), 4), np.float32) / 2
    assert clustering_metrics(embeddings, np.array(labels, int)) == {}
