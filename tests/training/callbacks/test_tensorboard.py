"""The files of a finished run that TensorBoard reads: the projector and the worst mistakes."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector import ProjectorConfig

from arcloop.cli.main import main
from arcloop.data import EmbeddingDataModule, Store
from arcloop.display.plotting import RIGHT, WRONG
from arcloop.evaluation import Mistake, mistake_sheet
from arcloop.runtime.searcher import Model
from arcloop.training.callbacks.tensorboard import TensorBoardPages, make_thumbnails, to_cell

RUN = "runs/synthetic"
CONFIG = "projector_config.pbtxt"


def colour(hexadecimal):
    return np.array([int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5)])


def test_projector_contains_vector_class_and_thumbnail_of_each_image(finished):
    run = finished / RUN
    logs = run / "tensorboard"
    config = text_format.Parse((logs / CONFIG).read_text(), ProjectorConfig())
    (shown,) = config.embeddings
    vectors = np.loadtxt(logs / shown.tensor_path, delimiter="\t", dtype=np.float32)
    header, *lines = (logs / shown.metadata_path).read_text().splitlines()
    assert header.split("\t") == ["class", "split", "row"]
    assert len(lines) == len(vectors) == 90 + 70  # all images of both splits
    with Image.open(logs / shown.sprite.image_path) as opened:
        sheet = np.asarray(opened)
    assert sheet.shape[0] == sheet.shape[1]  # required by the projector
    width, height = shown.sprite.single_image_dim
    (folder,) = (finished / "stores").iterdir()
    store, model = Store.open(folder), Model(run / "model.pt")
    for number, line in enumerate(lines):
        name, split, row = line.split("\t")
        image, label = store.gather(split, np.array([int(row)]))
        assert name == store.classes[label[0]]
        at = divmod(number, sheet.shape[1] // width)
        tile = sheet[at[0] * height :, at[1] * width :][:height, :width]
        np.testing.assert_array_equal(tile, np.repeat(image[0], 3, axis=-1))
        np.testing.assert_allclose(vectors[number], model.embed(image)[0], atol=2e-5)


def test_mistakes_are_an_image_summary(finished):
    events = EventAccumulator(str(finished / RUN / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["worst mistakes"]
    mistakes = json.loads((finished / RUN / "evaluation/mistakes.json").read_bytes())
    (shown,) = events.Images("worst mistakes")
    assert shown.step == 2 * 6
    with Image.open(io.BytesIO(shown.encoded_image_string)) as opened:
        assert opened.height > opened.width * len(mistakes) / 12
    assert "val_top1" in events.Tags()["scalars"]


def test_disabled_pages_are_not_written(work):
    short = ["run_dir=again", "trainer.max_epochs=1", "callbacks.evaluate=null",
             "callbacks.tensorboard.num_projected=0"]  # fmt: skip
    from tests.conftest import SMALL

    assert main(["train", *SMALL, *short]) == 0
    logs = work / "again/tensorboard"
    assert not (logs / CONFIG).exists()
    events = EventAccumulator(str(logs))
    events.Reload()
    assert events.Tags()["images"] == []
    assert main(["train", *SMALL, *short, "run_dir=csv", "logger=csv"]) == 0
    assert not (work / "csv/tensorboard").exists()


@settings(max_examples=50)
@given(st.text())
def test_any_class_name_is_one_cell_of_a_tsv_file(name):
    cell = to_cell(name)
    assert cell
    assert len(f"{cell}\tquery".splitlines()) == 1
    assert cell.split("\t") == [cell]


@pytest.mark.parametrize("channels", [1, 3])
def test_thumbnails_are_square_and_preserve_proportions(channels):
    images = np.full((2, 64, 32, channels), 255, np.uint8)
    thumbnails = make_thumbnails(images)
    assert thumbnails.shape == (2, 3, 48, 48)
    assert (thumbnails[..., :24] == 1).all()
    assert (thumbnails[..., 24:] == 0).all()


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 200)])
def test_neighbours_are_framed_in_the_colour_of_right_or_wrong(channels, side):
    mistakes = [
        Mistake(query_row=0, label=0, predicted=1, similarity=0.9, neighbour_rows=(4, 5),
                neighbour_labels=(1, 0), neighbour_similarities=(0.9, 0.8))
    ]  # fmt: skip
    asked = []

    def image(split, row):
        asked.append((split, row))
        return np.full((side, side, channels), 128, np.uint8)

    sheet = mistake_sheet(mistakes, ["a", "b"], image)
    assert asked == [("query", 0), ("gallery", 4), ("gallery", 5)]
    near = [np.flatnonzero((abs(sheet.astype(int) - colour(c)).sum(2) < 12).any(0))
            for c in (WRONG, RIGHT)]  # fmt: skip
    assert len(near[0]) > 20
    assert near[0].max() < near[1].min()  # the nearest neighbour is wrong, the second is right


def test_number_of_drawn_mistakes_is_limited():
    one = Mistake(query_row=0, label=0, predicted=1, similarity=0.9, neighbour_rows=(),
                  neighbour_labels=(), neighbour_similarities=())  # fmt: skip
    sheet = mistake_sheet([one] * 500, ["a", "b"], lambda *_: np.zeros((8, 8, 1), np.uint8))
    assert sheet.shape[0] < 5000


def test_evaluation_without_mistakes_adds_no_image(finished, tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/manifest.json").write_bytes(
        (finished / RUN / "evaluation/manifest.json").read_bytes()
    )
    (tmp_path / "evaluation/mistakes.json").write_text("[]")
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = SimpleNamespace(
        loggers=[logger], is_global_zero=True, global_step=1,
        datamodule=EmbeddingDataModule.__new__(EmbeddingDataModule),
    )  # fmt: skip
    trainer.datamodule.store = None
    TensorBoardPages(run_dir=str(tmp_path), embed=None, num_projected=0).on_fit_end(trainer, None)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["images"] == []
