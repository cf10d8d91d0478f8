import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluation.conftest import CORNERS, cut, labelled_corners

from arcloop.errors import DataError
from arcloop.retrieval.calibration import calibrate_threshold, smallest_threshold

fars = st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.5, 0.99, 1.0])
sizes = st.lists(st.integers(1, 7), min_size=1, max_size=3)


def accepted(best, threshold):
    return sum(value >= threshold for value in best) / len(best)


@given(
    val=labelled_corners(3, st.integers(1, 12)),
    gallery=labelled_corners(3, st.integers(1, 15)),
    far=fars,
    val_sizes=sizes,
    gallery_sizes=sizes,
)
def test_the_smallest_threshold_that_lets_no_more_than_far_pass(
    val, gallery, far, val_sizes, gallery_sizes
):
    threshold = calibrate_threshold(cut(*val, val_sizes), lambda: cut(*gallery, gallery_sizes), far)
    best = [
        max(
            (float(row @ other) for other, theirs in zip(*gallery, strict=True) if theirs != label),
            default=-np.inf,
        )
        for row, label in zip(*val, strict=True)
    ]
    assert threshold >= -1
    assert accepted(best, threshold) <= far
    if threshold > -1:
        just_under = float(np.nextafter(np.float32(threshold), np.float32(-2)))
        assert accepted(best, just_under) > far


def test_a_gallery_of_one_class_accepts_every_query():
    rows, labels = CORNERS, np.zeros(16, np.int64)
    assert calibrate_threshold([(rows, labels)], lambda: [(rows, labels)], 0.01) == -1


def test_far_zero_accepts_no_val_image():
    assert smallest_threshold(np.array([0.25, 1.0], np.float32), 0) > 1


def test_embeddings_that_are_not_finite_are_refused():
    rows = np.full_like(CORNERS, np.nan)
    labels = np.zeros(16, np.int64)
    with pytest.raises(DataError, match="not finite"):
        calibrate_threshold([(rows, labels)], lambda: [(CORNERS, labels)], 0.01)
