import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arcloop.training.neighbours import leave_one_out_top1


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 5), st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_equals_a_loop(seed, rows, classes, chunk):
    random = np.random.default_rng(seed)
    embeddings = random.normal(size=(rows, 3))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = random.integers(0, classes, rows)
    right = counted = 0
    for i in range(rows):
        others = [j for j in range(rows) if j != i]
        if any(labels[j] == labels[i] for j in others):
            counted += 1
            nearest = max(others, key=lambda j: embeddings[i] @ embeddings[j])
            right += labels[nearest] == labels[i]
    found = leave_one_out_top1(torch.from_numpy(embeddings), torch.from_numpy(labels), chunk)
    assert found == pytest.approx(right / max(counted, 1))


def test_identical_rows_do_not_match_themselves():
    rows = torch.ones(3, 2) / 2**0.5
    assert leave_one_out_top1(rows, torch.tensor([0, 1, 2])) == 0
