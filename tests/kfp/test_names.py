"""The folder kubeflow/ does not shadow the SDK of that name, which the tests install."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_kubeflow_sdk_is_importable():
    first = ["", str(ROOT), str(ROOT / "kubeflow")]
    code = f"import sys; sys.path[:0] = {first}; from kubeflow.trainer import TrainerClient"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_kubeflow_folder_is_not_a_package():
    assert not list((ROOT / "kubeflow").rglob("__init__.py"))


def test_script_names_are_unique():
    """The deploy step has both on its path."""
    ours = {path.name for path in (ROOT / "kubeflow").glob("*.py")}
    assert ours.isdisjoint(path.name for path in (ROOT / "serving").iterdir())
    assert {path.stem for path in (ROOT / "kubeflow").glob("*.py")}.isdisjoint(
        sys.stdlib_module_names
    )
