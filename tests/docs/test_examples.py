"""The snippets of docs/python.md and everything in examples/ run, on few images."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGE = (ROOT / "docs/python.md").read_text()


def test_the_snippets_of_the_page(work, capsys):
    (work / "runs/synthetic").rename(work / "runs/mnist")
    (work / "some").mkdir()
    Image.new("L", (28, 28), 30).save(work / "some/digit.png")
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(snippet, names)
    assert names["embeddings"].shape == (1, 16)
    assert len(names["answer"].neighbours) == 3
    assert names["path"] == work / "runs/mnist/export/model.pt2"


def test_every_example_is_on_the_page():
    shown = set(re.findall(r'--8<-- "(.*?)"', PAGE))
    assert shown == {f"examples/{file.name}" for file in EXAMPLES.glob("*.py")}
    assert [file.name for file in EXAMPLES.glob("*.ipynb")] == ["search.ipynb"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The store of the examples, which both of them prepare if it does not exist."""
    return tmp_path_factory.mktemp("examples") / "store"


def test_plain_loop(store):
    """It learns, and imports neither Hydra nor Lightning."""
    arguments = ["plain_loop.py", "--epochs", "1", "--store", str(store)]
    code = (
        f"import runpy, sys; sys.argv = {arguments!r};"
        f"runpy.run_path({str(EXAMPLES / 'plain_loop.py')!r}, run_name='__main__');"
        "print(*{'hydra', 'omegaconf', 'pytorch_lightning'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    *_, recall, imported = done.stdout.split("\n")[:-1]
    assert float(recall.removeprefix("Recall@1 ")) > 0.8  # of 20 classes
    assert imported == ""


def test_hf_trainer(store, lora_extra, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", ["hf_trainer.py", "--epochs", "1", "--store", str(store)])
    assert runpy.run_path(str(EXAMPLES / "hf_trainer.py"))["main"]() > 0.15  # of 20 classes


def test_notebook(tmp_path):
    notebook = nbformat.read(EXAMPLES / "search.ipynb", as_version=4)
    nbformat.validate(notebook)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2
