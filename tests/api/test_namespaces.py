"""The public names of arcloop, and that those for other training loops are light to import."""

import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch

import arcloop
from arcloop.errors import ArcloopError, ConfigError

NAMESPACES = ("arcloop", "arcloop.heads", "arcloop.samplers", "arcloop.metrics", "arcloop.data")


@pytest.mark.parametrize("name", NAMESPACES)
def test_every_public_name_can_be_imported(name):
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert getattr(module, public) is not None
    assert set(module.__all__) <= set(dir(module)) | {"EmbeddingDataModule", "EpochBatches"}


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'heds'"):
        _ = arcloop.heds


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("arcloop", "torch numpy hydra PIL"),
        ("arcloop.errors, arcloop.data", "torch faiss hydra omegaconf pytorch_lightning"),
        (
            "arcloop.heads, arcloop.samplers, arcloop.metrics, arcloop.data",
            "hydra omegaconf pytorch_lightning torchmetrics tensorboard",
        ),
    ],
)
def test_imports_are_light(imported, absent):
    code = f"import sys, {imported}; print(*{{*'{absent}'.split()}} & {{*sys.modules}})"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert printed.split() == []


def test_a_head_is_created_from_its_config_with_other_values():
    torch.manual_seed(0)
    head = arcloop.heads.create("arcface", embedding_dim=8, num_classes=3, margin=0.5)
    torch.manual_seed(0)
    expected = arcloop.heads.ArcFace(
        embedding_dim=8, num_classes=3, margin=0.5, scale=32.0, easy_margin=False,
        size_margin=0.0, size_power=0.25,
    )  # fmt: skip
    features_BD, labels_B = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
    assert torch.equal(head(features_BD, labels_B), expected(features_BD, labels_B))


@pytest.mark.parametrize(
    ("choice", "values", "what"),
    [
        ("arcfase", {}, "there is no head=arcfase"),
        ("arcface", {"margin": 7.0}, "margin"),
        ("arcface", {"margn": 0.3}, "margn"),
    ],
)
def test_a_head_that_cannot_be_created(choice, values, what):
    with pytest.raises((ConfigError, TypeError), match=what):
        arcloop.heads.create(choice, embedding_dim=8, num_classes=3, **values)


def test_metrics_of_torch_embeddings():
    embeddings_ND = torch.nn.functional.normalize(torch.eye(4)[[0, 0, 1, 2]])
    labels_N = np.array([0, 0, 1, 1])
    rows = embeddings_ND, labels_N
    found = arcloop.metrics.evaluate_retrieval(rows, rows, leave_one_out=True)
    _, neighbours_NK = arcloop.metrics.exact_neighbours(
        embeddings_ND.numpy(), embeddings_ND.numpy(), k=1, own_rows_Q=np.arange(4)
    )
    hits_N = arcloop.metrics.recall_at_k(labels_N[neighbours_NK], labels_N, k=1)
    assert hits_N.mean() == found["recall_at_1"] == 0.5


def test_errors_have_one_base_class():
    assert arcloop.ArcloopError is ArcloopError
