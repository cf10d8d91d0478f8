"""The folder is called kubeflow, and so is the SDK on PyPI, which is installed beside the tests."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("first", ["", str(ROOT), str(ROOT / "kubeflow")])
def test_the_sdk_is_found_next_to_our_folder(first):
    code = f"import sys; sys.path.insert(0, {first!r}); from kubeflow.trainer import TrainerClient"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_our_folder_is_no_package():
    assert not list((ROOT / "kubeflow").rglob("__init__.py"))


def test_no_module_of_ours_hides_one_of_serving():
    """The deploy step has both on its path."""
    ours = {path.name for path in (ROOT / "kubeflow").glob("*.py")}
    assert ours.isdisjoint(path.name for path in (ROOT / "serving").iterdir())
    assert {path.stem for path in (ROOT / "kubeflow").glob("*.py")}.isdisjoint(
        sys.stdlib_module_names
    )
