import os

import faiss
import numpy as np
import pytest
import sklearn.cluster  # noqa: F401  # loads its OpenMP
import torch
from joblib import cpu_count
from threadpoolctl import threadpool_info

from arcloop.distributed.threads import default_threads, use_threads


@pytest.mark.parametrize(
    ("variable", "expected"), [("3", 3), ("5,1", 5), ("0", None), ("many", None), (None, None)]
)
def test_the_default_is_omp_num_threads_or_the_cores(monkeypatch, variable, expected):
    monkeypatch.delenv("OMP_NUM_THREADS")
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert default_threads() == (expected or cpu_count(only_physical_cores=True))
    assert default_threads(processes=1000) == (expected or 1)


def number_of_threads():
    pools = {pool["num_threads"] for pool in threadpool_info()}
    return pools | {torch.get_num_threads(), faiss.omp_get_max_threads()}


def test_every_library_uses_the_number(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    np.ones((2, 2)) @ np.ones((2, 2))
    before = number_of_threads()
    with use_threads(3):
        assert number_of_threads() == {3}
        assert os.environ["OMP_NUM_THREADS"] == "3"
    assert number_of_threads() == before
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_a_variable_that_was_not_set_is_removed(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    with use_threads(2):
        pass
    assert "OMP_NUM_THREADS" not in os.environ
