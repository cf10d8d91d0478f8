"""Every command in README and docs runs, in the order it is written, on small data of its kind.

The commands of some pages run in the tests of their package, e.g. those of docs/metrics.md in
tests/evaluation. Here `train` does not evaluate the model, because `run` does, and all commands
train in one process; tests/distributed trains in two.
"""

import gzip
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from arcloop.cli.main import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {
    page.name: page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
}
ELSEWHERE = {
    "backbones.md", "data.md", "export.md", "kubeflow.md", "metrics.md", "serving.md", "stores.md",
    "tracking.md",
}  # fmt: skip
API = ("arcloop", "arcloop.heads", "arcloop.samplers", "arcloop.metrics", "arcloop.data")
AS_THEY_ARE = (
    "query", "index", "evaluate", "export", "lineage", "reproduce", "leaderboard", "schema",
    "completion",
)  # fmt: skip
QUICK = ["trainer.max_epochs=1", "loader.batch_size=32", "backbone.widths=[8,8]"]


def commands(page):
    for block in re.findall(r"```bash\n(.*?)```", PAGES[page], flags=re.DOTALL):
        yield from (line for line in block.splitlines() if line.startswith("arcloop "))


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    with gzip.open(path, "wb") as file:
        file.write(header + array.tobytes())


def small_mnist(folder):
    """Ten classes of noisy bars in MNIST's format."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for stem, rows in (("train", 600), ("t10k", 100)):
        labels = (np.arange(rows) % 10).astype(np.uint8)
        images = random.integers(0, 60, (rows, 28, 28)).astype(np.uint8)
        images[np.arange(rows), 2 * labels + 3] = 255
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", labels)


def pictures(folder):
    """Twelve images of each of five shapes in two sizes: enough classes for disjoint splits."""
    random = np.random.default_rng(0)
    for shape in ("circle", "square", "ring", "frame", "cross"):
        for name, size in ((shape, 18), (f"small_{shape}", 9)):
            (folder / name).mkdir(parents=True)
            for number in range(12):
                image = Image.new("RGB", (48, 40), tuple(random.integers(0, 80, 3).tolist()))
                draw = ImageDraw.Draw(image)
                x, y = random.integers(4, 18, 2).tolist()
                box = (x, y, x + size, y + size)
                if shape in ("circle", "ring"):
                    fill = "white" if shape == "circle" else None
                    draw.ellipse(box, fill=fill, outline="white", width=3)
                elif shape in ("square", "frame"):
                    fill = "white" if shape == "square" else None
                    draw.rectangle(box, fill=fill, outline="white", width=3)
                else:
                    draw.line(box, fill="white", width=3)
                    draw.line((x + size, y, x, y + size), fill="white", width=3)
                image.save(folder / name / f"{number:03d}.png")


def quick(verb, rest):
    """What makes a command quick, unless it sets it itself."""
    given = {argument.partition("=")[0] for argument in rest}
    more = ["callbacks.evaluate=null"] if verb == "train" else []
    return [*(q for q in QUICK if q.partition("=")[0] not in given), *more]


def scaled_down(command):
    """The command with what makes it quick: small MNIST, few epochs, one process."""
    verb, *rest = shlex.split(command)[1:]
    if verb in AS_THEY_ARE or "--help" in rest:
        return [verb, *rest]
    small = (
        []
        if {"data=image_folder", "experiment=images"} & set(rest)
        else ["data.root=mnist", "data.val=100", "data.gallery=200"]
    )
    small += ["trainer.devices=1"] if "trainer.devices=2" in rest else []
    small += ["trainer.max_epochs=2"] if "trainer.max_epochs=12" in rest else []
    return [verb, *rest, *small, *quick(verb, rest), "evaluate.gate.min_top1=0.5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for all pages, so that the pages share the store and the run of the demo."""
    path = tmp_path_factory.mktemp("docs")
    small_mnist(path / "mnist")
    pictures(path / "my/pictures")
    (path / "some").mkdir()
    Image.new("L", (28, 28), 30).save(path / "some/digit.png")
    return path


@pytest.mark.parametrize(
    "page", sorted(page for page in PAGES.keys() - ELSEWHERE if list(commands(page)))
)
def test_commands(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    shutil.rmtree("runs/mine", ignore_errors=True)  # two pages train a run of this name
    for command in commands(page):
        assert main(scaled_down(command)) in (0, 3), command
    for snippet in re.findall(r"```python\n(.*?)```", PAGES[page], flags=re.DOTALL):
        exec(snippet, {})


def test_the_error_that_the_readme_shows(capsys):
    (shown,) = re.findall(r"```console\n\$ (.*?)\n(.*?)```", README, flags=re.DOTALL)
    command, expected = shown
    assert main(shlex.split(command)[1:]) == 2
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z]+)", README))))
def test_make_targets_of_the_readme_exist(target):
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?://)([^)#]+)\)", README))
def test_links_of_the_readme_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_the_site_builds_strictly(tmp_path):
    """Links, navigation, the pages that are made from conf/ and docstrings, all public names."""
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True)
    page = (tmp_path / "configuration/index.html").read_text()
    for group in (p.name for p in (ROOT / "conf").iterdir() if p.is_dir()):
        assert f'id="{group}"' in page
    reference = (tmp_path / "api/index.html").read_text()
    for namespace in API:
        for name in importlib.import_module(namespace).__all__:
            # A function may have the name of its module.
            places = (f"{namespace}.{name}", f"{namespace}.{name}.{name}")
            listed = name.startswith("__") or f"arcloop.{name}" in API
            assert listed or any(f'id="{place}"' in reference for place in places), places
