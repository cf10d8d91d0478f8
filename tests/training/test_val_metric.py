import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arcloop.training.module import leave_one_out_top1


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_leave_one_out_top1_equals_a_loop(seed, rows, classes):
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
    found = leave_one_out_top1(torch.from_numpy(embeddings), torch.from_numpy(labels))
    assert found == pytest.approx(right / max(counted, 1))


def test_leave_one_out_top1_excludes_the_row_itself():
    rows = torch.ones(3, 2) / 2**0.5
    assert leave_one_out_top1(rows, torch.tensor([0, 1, 2])) == 0


def test_leave_one_out_top1_is_zero_if_an_embedding_is_not_finite():
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [float("nan"), 0.0]])
    assert leave_one_out_top1(rows, torch.tensor([0, 0, 0])) == 0
