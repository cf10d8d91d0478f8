"""`arcloop init`: a project that trains, with its own head, and whose tests pass."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from arcloop.cli.main import main

TRAIN = [
    "run", "experiment=my_shop", "data.root=pictures", "data.image_size=16", "trainer.max_epochs=1",
    "backbone.widths=[8,8]", "embedder.embedding_dim=8", "loader.batch_size=8",
    "evaluate.num_projected=0", "evaluate.gate.min_top1=0", "head=my_shop_head",
    "augmentation=my_shop",
]  # fmt: skip


def test_a_new_project_trains_its_head_and_passes_its_test(in_tmp, monkeypatch, capsys):
    assert main(["init", "my-shop"]) == 0
    project = in_tmp / "my-shop"
    assert str(project) in capsys.readouterr().out
    monkeypatch.chdir(project)
    generator = np.random.default_rng(0)
    for name in range(12):
        colour = generator.integers(60, 196, 3)
        (project / f"pictures/{name}").mkdir(parents=True)
        for number in range(4):
            pixels = (colour + generator.integers(-40, 40, (16, 16, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(project / f"pictures/{name}/{number}.png")
    assert main(TRAIN) == 0
    config = json.loads((project / "runs/my_shop/manifest.json").read_bytes())["config"]
    assert config["head"]["_target_"] == "my_shop.heads.RampedArcFace"
    assert config["data"]["name"] == "my_shop"
    assert config["data"]["split"] == "disjoint"  # of experiment=images
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stdout
    assert "1 passed" in tested.stdout


@pytest.mark.parametrize("name", ["torch", "2shops", "class", "json", "a b"])
def test_a_name_that_is_no_package_is_refused(in_tmp, capsys, name):
    assert main(["init", name]) == 2
    assert "cannot be the name of a Python package" in capsys.readouterr().err
    assert not list(in_tmp.iterdir())


def test_a_folder_with_files_is_not_changed(in_tmp, capsys):
    (in_tmp / "shop").mkdir()
    (in_tmp / "shop/notes.txt").write_text("mine")
    assert main(["init", "shop"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in in_tmp.rglob("*")] == ["shop", "notes.txt"]
