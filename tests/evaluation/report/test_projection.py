import numpy as np
import pytest

from arcloop.evaluation.report.projection import MIN_ROWS, project


def clusters(count, num_classes=5, seed=0):
    random = np.random.default_rng(seed)
    centres = np.eye(num_classes, 16, dtype=np.float32)
    labels = np.arange(count) % num_classes
    rows = centres[labels] + 0.15 * random.standard_normal((count, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), labels


def test_rows_of_one_class_lie_together_and_queries_among_them():
    rows, labels = clusters(150)
    gallery, queries = project(rows[:100], rows[100:])
    assert gallery.shape == (100, 2)
    assert queries.shape == (50, 2)
    for points, own in ((queries, labels[100:]), (gallery, labels[:100])):
        distances = np.linalg.norm(points[:, None] - gallery[None], axis=2)
        distances[distances == 0] = np.inf
        assert np.mean(labels[:100][distances.argmin(axis=1)] == own) > 0.95


def test_the_same_embeddings_give_the_same_map():
    rows, _ = clusters(60)
    once, again = project(rows, rows[:9]), project(rows, rows[:9])
    assert np.array_equal(once[0], again[0])
    assert np.array_equal(once[1], again[1])


@pytest.mark.parametrize("rows", [MIN_ROWS, 11, 40])
def test_points_are_finite_though_all_images_are_alike(rows):
    same = np.tile(np.eye(1, 8, dtype=np.float32), (rows, 1))
    gallery, queries = project(same, same[:3])
    assert np.isfinite(gallery).all()
    assert np.isfinite(queries).all()
    assert len(project(same, same[:0])[1]) == 0
