"""The folder is called kubeflow, and so is the SDK on PyPI: ours must never be taken for it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sdk(tmp_path):
    """A stand-in for the installed SDK: a regular package of that name, last on the path."""
    (tmp_path / "kubeflow").mkdir()
    (tmp_path / "kubeflow/__init__.py").write_text("whose = 'the SDK'\n")
    return tmp_path


@pytest.mark.parametrize("first", ["", str(ROOT), str(ROOT / "kubeflow")])
def test_the_sdk_is_found_next_to_our_folder(sdk, first):
    code = (
        f"import sys; sys.path.insert(0, {first!r}); sys.path.append({str(sdk)!r});"
        "import kubeflow; print(kubeflow.whose)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "the SDK"


def test_our_folder_is_no_package():
    assert not list((ROOT / "kubeflow").rglob("__init__.py"))


def test_no_module_of_ours_hides_one_of_serving():
    """The deploy step has both on its path."""
    ours = {path.name for path in (ROOT / "kubeflow").glob("*.py")}
    assert ours.isdisjoint(path.name for path in (ROOT / "serving").iterdir())
    assert {path.stem for path in (ROOT / "kubeflow").glob("*.py")}.isdisjoint(
        sys.stdlib_module_names
    )
