import csv

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import SMALL

from arcloop.cli.main import main
from arcloop.data import Store
from arcloop.training.module import leave_one_out_top1


def loop(embeddings, labels):
    right = counted = 0
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        if any(labels[j] == labels[i] for j in others):
            counted += 1
            nearest = max(others, key=lambda j: embeddings[i] @ embeddings[j])
            right += labels[nearest] == labels[i]
    return right / max(counted, 1)


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_leave_one_out_top1_equals_a_loop(seed, rows, classes):
    random = np.random.default_rng(seed)
    embeddings = random.normal(size=(rows, 3))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = random.integers(0, classes, rows)
    found = leave_one_out_top1(torch.from_numpy(embeddings), torch.from_numpy(labels))
    assert found == pytest.approx(loop(embeddings, labels))


def test_the_best_logged_value_is_that_of_the_exported_model(in_tmp):
    assert main(["train", *SMALL, "callbacks=export_only", "run_dir=run"]) == 0
    with open("run/metrics.csv", newline="") as file:
        logged = [float(row["val_top1"]) for row in csv.DictReader(file) if row["val_top1"]]
    assert len(logged) == 2
    (store,) = (in_tmp / "stores").glob("synthetic-*")
    images, labels = Store.open(store).gather("val", np.arange(60))
    with torch.no_grad():
        embeddings = torch.jit.load("run/model.pt")(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert max(logged) == pytest.approx(loop(embeddings.numpy(), labels))


def test_leave_one_out_top1_excludes_the_row_itself():
    rows = torch.ones(3, 2) / 2**0.5
    assert leave_one_out_top1(rows, torch.tensor([0, 1, 2])) == 0


def test_leave_one_out_top1_is_zero_if_an_embedding_is_not_finite():
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [float("nan"), 0.0]])
    assert leave_one_out_top1(rows, torch.tensor([0, 0, 0])) == 0
