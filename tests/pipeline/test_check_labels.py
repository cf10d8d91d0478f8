"""`arcloop check-labels`: wrong labels come first, and no model saw the image that it judges."""

import csv
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import arcloop_in
from tests.evaluation.conftest import CORNERS, cut

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.data import Store
from arcloop.data.sources.store_fold import FoldListing, StoredImages, StoreFold, assign_folds
from arcloop.evaluation.label_issues import find_label_issues, join_issues

CLASSES, IMAGES, WRONG = 6, 16, 6
RUN = "runs/shapes"


def draw(folder):
    """Write noisy patterns of 4 x 4 cells, of which `WRONG` are in the folder of another class."""
    random = np.random.default_rng(4)
    patterns = random.integers(0, 256, (CLASSES, 4, 4, 3))
    wrong = set(random.choice(CLASSES * IMAGES, WRONG, replace=False).tolist())
    truth = {}
    for number in range(CLASSES * IMAGES):
        true = number % CLASSES
        label = (true + 1 + number % (CLASSES - 1)) % CLASSES if number in wrong else true
        pixels = patterns[true].repeat(4, 0).repeat(4, 1) + random.normal(0, 25, (16, 16, 3))
        path = folder / f"class {label}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        truth[f"class {label}/{number:03d}.png"] = f"class {true}"
    for number in range(2):
        (folder / "small").mkdir(exist_ok=True)
        noise = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "small" / f"{number}.png")
    return truth


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    truth = draw(folder / "shapes")
    arcloop_in(
        folder, "train", "data=image_folder", "data.root=shapes", "data.image_size=16",
        "data.split=disjoint", "data.val_classes=2", "data.test_classes=3",
        "loader.batch_size=16", "trainer.max_epochs=4", "backbone.widths=[8,8]",
        "embedder.embedding_dim=16", "callbacks=export_only", "augmentation=none",
        "export=onnx", f"run_dir={RUN}",
    )  # fmt: skip
    arcloop_in(folder, "check-labels", RUN, "--folds", "3", "--top", "20")
    return folder, truth


def test_wrong_labels_come_first(checked):
    folder, truth = checked
    with open(folder / f"{RUN}-labels/label_issues.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wrong = {name for name, label in truth.items() if not name.startswith(label)}
    first = [row["file"] for row in rows[:WRONG]]
    # By chance, each is among the first with a probability of 6 / 96.
    assert len(wrong & set(first)) >= WRONG - 1
    found = [row for row in rows if row["file"] in wrong]
    assert sum(row["suggested_label"] == truth[row["file"]] for row in found) >= WRONG - 1
    assert all(row["label"] == row["file"].split("/")[0] for row in rows)
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0
    assert not any("small" in row["file"] for row in rows)
    page = (folder / f"{RUN}-labels/report.html").read_text("utf-8")
    assert all(name in page for name in first)
    assert "2 images are not checked, because their classes have fewer than 3 images" in page
    assert page.count("data:image/webp") == 7 * min(20, len(rows))


def test_the_result_is_a_verified_artifact(checked, monkeypatch, capsys):
    folder, _ = checked
    monkeypatch.chdir(folder)
    found = artifacts.load(Path(f"{RUN}-labels"), "label_check")
    assert {*found.files} == {"label_issues.csv", "report.html"}
    assert not list(Path(f"{RUN}-labels").glob(".fold-*"))
    assert {path.name for path in Path("stores").iterdir()} == {found_store().name}
    assert main(["check-labels", RUN, "--folds", "1"]) == 2
    assert main(["check-labels", "runs/none"]) == 1
    assert "runs/none" in capsys.readouterr().err


def found_store():
    (store,) = Path("stores").glob("image_folder-*")
    return store


def test_images_of_all_splits_are_read_by_number(checked, monkeypatch):
    folder, _ = checked
    monkeypatch.chdir(folder)
    store = Store.open(found_store())
    images = StoredImages(store)
    assert store.leave_one_out  # gallery and query are the same rows, which are counted once
    assert len(images.labels) == CLASSES * IMAGES + 2
    numbers = np.arange(1, len(images.labels), 7)
    for number, pixels in zip(numbers, images.read(numbers), strict=True):
        split, row = images.locate(int(number))
        stored, label = store.gather(split, np.array([row]))
        assert (stored[0] == pixels).all()
        assert label[0] == images.labels[number]


def test_no_image_of_a_fold_is_trained_on(checked, monkeypatch):
    folder, _ = checked
    monkeypatch.chdir(folder)
    same = {"shard_rows": 64, "encoding": "raw", "jpeg_quality": 90}
    same |= {"val_classes": 2, "test_classes": 2}
    held_out = []
    for fold in range(3):
        source = StoreFold(
            name="fold", store_dir=str(found_store()), fold=fold, folds=3, split="stratified",
            **same,
        )  # fmt: skip
        numbers = FoldListing(source).numbers
        assert not set(numbers["gallery"]) & set(numbers["train"])
        assert len(numbers["gallery"]) + len(numbers["train"]) == CLASSES * IMAGES
        assert set(numbers["val"]) < set(numbers["train"])
        assert len(numbers["val"]) == 2 * CLASSES
        held_out += numbers["gallery"].tolist()
    assert len(set(held_out)) == len(held_out) == CLASSES * IMAGES


@hypothesis.given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(2, 7))
def test_every_class_is_divided_evenly(labels, folds):
    labels = np.array(labels)
    fold_N = assign_folds(labels, folds)
    for label in np.unique(labels):
        of_class = fold_N[labels == label]
        if len(of_class) < 3:
            assert (of_class == -1).all()
            continue
        counts = np.bincount(of_class, minlength=folds)
        assert len(counts) == folds
        assert counts.max() - counts.min() <= 1
        assert counts.max() < len(of_class)  # others remain to compare it with


@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(3, 40), st.integers(1, 9))
def test_the_nearest_images_by_definition(seed, total, size):
    random = np.random.default_rng(seed)
    label_N, rows = random.integers(0, 3, total), CORNERS[random.integers(0, 16, total)]
    is_query = random.random(total) < 0.4
    gallery, queries = np.flatnonzero(~is_query), np.flatnonzero(is_query)
    queries = queries[np.isin(label_N[queries], label_N[gallery])]
    hypothesis.assume(len(gallery) and len(queries))
    found = find_label_issues(
        lambda: cut(rows[queries], label_N[queries], [size]), queries,
        lambda: cut(rows[gallery], label_N[gallery], [size]), gallery, label_N,
    )  # fmt: skip
    expected = {}
    for query in queries:
        cosines = rows[gallery] @ rows[query]
        same = label_N[gallery] == label_N[query]
        if not same.all() and cosines[~same].max() > cosines[same].max():
            order = sorted(range(len(gallery)), key=lambda row: (-cosines[row], row))
            score = cosines[~same].max() - cosines[same].max()
            expected[int(query)] = score, gallery[order[:6]].tolist()
    assert found.numbers.tolist() == sorted(expected, key=lambda n: (-expected[n][0], n))
    for row, number in enumerate(found.numbers.tolist()):
        assert (found.score[row], found.neighbours[row].tolist()) == expected[number]
    assert join_issues([found, found]).score.tolist() == sorted(
        [*found.score, *found.score], reverse=True
    )
