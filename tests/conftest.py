"""What every test shares: one thread for torch, so that two workers do not fight over two cores."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """Work in an empty folder: relative paths of the defaults lead there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
