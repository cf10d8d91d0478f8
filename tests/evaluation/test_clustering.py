"""NMI and AMI against scikit-learn, and k-means on clusters that are there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, expected_mutual_information

from arcloop.evaluation.metrics.clustering import (
    ami,
    cluster,
    clustering_metrics,
    expected_information,
    nmi,
)
from arcloop.evaluation.metrics.sample import Sample

partitions = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=40)


@given(partitions)
def test_they_are_those_of_scikit_learn(pairs):
    labels, clusters = np.array(pairs).T
    assert nmi(labels, clusters) == pytest.approx(
        normalized_mutual_info_score(labels, clusters), abs=1e-9
    )
    if 1 < len(set(labels.tolist())) < len(labels):
        assert ami(labels, clusters) == pytest.approx(
            adjusted_mutual_info_score(labels, clusters), abs=1e-9
        )


def test_what_chance_gives_among_many_classes_of_many_sizes():
    random = np.random.default_rng(0)
    labels, clusters = random.zipf(1.5, 3000) % 400, random.integers(0, 250, 3000)
    table = contingency_matrix(labels, clusters, sparse=True).astype(np.int64)
    expected = expected_mutual_information(table, 3000)
    sizes = [np.unique(part, return_counts=True)[1] for part in (labels, clusters)]
    assert expected_information(*sizes) == pytest.approx(expected, rel=1e-9)
    assert abs(ami(labels, clusters)) < 0.02 < nmi(labels, clusters)


def points(noise, rows=120):
    random = np.random.default_rng(0)
    labels = np.arange(rows) % 4
    embeddings = np.eye(8, dtype=np.float32)[labels]
    embeddings += noise * random.standard_normal(embeddings.shape).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return Sample(embeddings, labels, np.arange(rows))


def test_clusters_that_are_there_are_found_and_noise_is_not():
    assert clustering_metrics(points(0.05)) == {"nmi": 1.0, "ami": pytest.approx(1.0)}
    noise = clustering_metrics(points(20))
    assert abs(noise["ami"]) < 0.1
    assert noise["ami"] < noise["nmi"]


def test_twice_the_same():
    sample = points(0.5)
    first, again = (cluster(sample.embeddings, 4) for _ in range(2))
    assert first.tolist() == again.tolist()
    assert len(set(first.tolist())) == 4


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], []])
def test_without_two_classes_or_two_rows_of_one_there_is_nothing_to_find(labels):
    embeddings = np.ones((len(labels), 4), np.float32) / 2
    assert clustering_metrics(Sample(embeddings, np.array(labels, int), np.arange(3))) == {}
