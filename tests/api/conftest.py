"""A project with a run on pictures, made by `arcloop.fit`."""

import contextlib

import numpy as np
import pytest
from PIL import Image

import arcloop
from arcloop.cli.main import main


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """The run of a new project on twelve classes of pictures; the project is two folders above."""
    folder = tmp_path_factory.mktemp("api")
    random = np.random.default_rng(0)
    with contextlib.chdir(folder):
        assert main(["init", "shop"]) == 0
    project = folder / "shop"
    for name in range(12):
        (project / f"pictures/{name}").mkdir(parents=True)
        colour = random.integers(60, 196, 3)
        for number in range(4):
            pixels = colour + random.integers(-40, 40, (20, 24, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(project / f"pictures/{name}/{number}.png")
    with contextlib.chdir(project):
        return arcloop.fit([
            "experiment=shop", "head=shop_head", "data.root=pictures", "data.image_size=16",
            "trainer.max_epochs=1", "backbone.widths=[8,8]", "embedder.embedding_dim=8",
            "loader.batch_size=8", "evaluate.num_projected=0", "evaluate.gate.min_top1=1",
        ])  # fmt: skip
