"""Two runs on the same data."""

import contextlib
import shutil

import pytest
from tests.conftest import SMALL, arcloop_in


@pytest.fixture(scope="session")
def two_runs(finished, tmp_path_factory):
    """A second run, runs/new, which was compared with the first by the callback after training."""
    folder = tmp_path_factory.mktemp("versus") / "w"
    shutil.copytree(finished, folder)
    versus = "evaluate.gate.versus=runs/synthetic"
    return arcloop_in(folder, "train", *SMALL, "seed=1", "run_dir=runs/new", versus)


@pytest.fixture
def both(two_runs, tmp_path):
    """Work in a copy of the folder with two runs."""
    shutil.copytree(two_runs, tmp_path / "both")
    with contextlib.chdir(tmp_path / "both"):
        yield tmp_path / "both"
