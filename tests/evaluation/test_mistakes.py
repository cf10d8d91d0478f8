"""Confusion tables compared with scikit-learn."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from arcloop.evaluation.mistakes import confusion


@given(num_classes=st.integers(1, 6), count=st.integers(1, 30), seed=st.integers(0, 999))
def test_counts_equal_scikit_learn(num_classes, count, seed):
    random = np.random.default_rng(seed)
    labels = random.integers(num_classes, size=count)
    predicted = random.integers(-1, num_classes, size=count)
    table = confusion(labels, predicted, num_classes)
    answered = predicted >= 0
    # An additional class, because scikit-learn warns about a table of one class.
    expected = np.zeros((num_classes + 1, num_classes + 1), int)
    if answered.any():
        expected = confusion_matrix(
            labels[answered], predicted[answered], labels=range(num_classes + 1)
        )
    assert table.counts.tolist() == expected[:-1, :-1].tolist()
    assert table.labels.tolist() == list(range(num_classes))
    assert table.counts.dtype == np.int64
    for label in range(num_classes):
        mine = labels == label
        assert table.total[label] == mine.sum()
        assert table.right[label] == (predicted[mine] == label).sum()
        if mine.any():
            assert table.accuracy[label] == np.mean(predicted[mine] == label)
        else:
            assert np.isnan(table.accuracy[label])
    for true, wrong, number in table.pairs:
        assert true != wrong
        assert number == expected[true, wrong]
    assert sum(number for *_, number in table.pairs) == (answered & (labels != predicted)).sum()


def test_with_too_many_classes_those_with_mistakes_are_shown():
    labels = np.array([0, 1, 2, 3, 4, 5, 5, 5])
    predicted = np.array([0, 1, 2, 3, 4, 2, 2, 4])
    table = confusion(labels, predicted, num_classes=6, max_classes=3)
    assert table.labels.tolist() == [2, 4, 5]
    assert table.counts.tolist() == [[1, 0, 0], [0, 1, 0], [2, 1, 0]]
    assert table.pairs == [(5, 2, 2), (5, 4, 1)]
    assert table.total.sum() == 8


@pytest.mark.filterwarnings("error")
def test_a_class_without_queries_raises_no_warning():
    assert np.isnan(confusion(np.array([0]), np.array([0]), 2).accuracy[1])


def test_many_classes_need_memory_for_one_table_only():
    """torchmetrics on CUDA with deterministic algorithms needs queries x classes**2 bytes."""
    random = np.random.default_rng(0)
    labels, predicted = random.integers(2000, size=(2, 4000))
    tracemalloc.start()
    table = confusion(labels, predicted, 2000, max_classes=2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.counts.sum() == 4000
    assert table.counts[labels[7], predicted[7]] > 0
    assert peak < 40 * 2**20  # one int64 table takes 32 MB
