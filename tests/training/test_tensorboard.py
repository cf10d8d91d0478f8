"""What TensorBoard itself reads of a finished run: the projector's files and the worst mistakes."""

import io
import json

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector import ProjectorConfig

from arcloop.cli.main import main
from arcloop.data import Store
from arcloop.display.plotting import RIGHT, WRONG
from arcloop.evaluation import Mistake, mistake_sheet
from arcloop.runtime.searcher import Model
from arcloop.training.callbacks.projector import CONFIG, write_projector

RUN = "runs/synthetic"


def colour(hexadecimal):
    return np.array([int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5)])


def test_the_projector_shows_each_image_beside_its_vector_and_class(finished):
    run = finished / RUN
    logs = run / "tensorboard"
    config = text_format.Parse((logs / CONFIG).read_text(), ProjectorConfig())
    (shown,) = config.embeddings
    vectors = np.loadtxt(logs / shown.tensor_path, delimiter="\t", dtype=np.float32)
    header, *lines = (logs / shown.metadata_path).read_text().splitlines()
    assert header.split("\t") == ["class", "split", "row"]
    assert len(lines) == len(vectors) == 90 + 70  # of both splits, all that there is
    with Image.open(logs / shown.sprite.image_path) as opened:
        sheet = np.asarray(opened)
    assert sheet.shape[0] == sheet.shape[1]  # as the projector takes it
    width, height = shown.sprite.single_image_dim
    (folder,) = (finished / "stores").iterdir()
    store, model = Store.open(folder), Model(run / "model.pt")
    for number, line in enumerate(lines):
        name, split, row = line.split("\t")
        image, label = store.gather(split, np.array([int(row)]))
        assert name == store.classes[label[0]]
        at = divmod(number, sheet.shape[1] // width)
        tile = sheet[at[0] * height :, at[1] * width :][:height, :width]
        np.testing.assert_array_equal(tile, image[0, ..., 0])
        np.testing.assert_allclose(vectors[number], model.embed(image)[0], atol=2e-5)


def test_the_mistakes_are_a_picture_among_its_images(finished):
    events = EventAccumulator(str(finished / RUN / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["worst mistakes"]
    mistakes = json.loads((finished / RUN / "evaluation/mistakes.json").read_bytes())
    (shown,) = events.Images("worst mistakes")
    assert shown.step == 2 * 6
    with Image.open(io.BytesIO(shown.encoded_image_string)) as opened:
        assert opened.height > opened.width * len(mistakes) / 12
    assert "val_top1" in events.Tags()["scalars"]


def test_what_is_left_out_is_not_there(work):
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


@settings(max_examples=30)
@given(st.lists(st.text(), min_size=1, max_size=9))
def test_any_class_name_is_one_cell_of_one_line(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("logs")
    vectors = np.eye(len(names), 4, dtype=np.float32)
    images = np.zeros((len(names), 64, 32, 3), np.uint8)
    write_projector(folder, vectors, [(name, "query", 0) for name in names], images)
    content = (folder / "projector/metadata.tsv").read_text()
    assert [len(line.split("\t")) for line in content.split("\n")[:-1]] == [3] * (len(names) + 1)
    config = text_format.Parse((folder / CONFIG).read_text(), ProjectorConfig())
    assert list(config.embeddings[0].sprite.single_image_dim) == [24, 48]  # in its proportions


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 200)])
def test_a_neighbour_is_framed_by_right_or_wrong(channels, side):
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
    assert near[0].max() < near[1].min()  # the nearest was wrong, the next was right


def test_only_so_many_mistakes_are_drawn():
    one = Mistake(query_row=0, label=0, predicted=1, similarity=0.9, neighbour_rows=(),
                  neighbour_labels=(), neighbour_similarities=())  # fmt: skip
    sheet = mistake_sheet([one] * 500, ["a", "b"], lambda *_: np.zeros((8, 8, 1), np.uint8))
    assert sheet.shape[0] < 5000
