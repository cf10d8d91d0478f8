"""Classes of which only the query split has images: their queries are unknowns."""

import json
from collections import Counter

import numpy as np
import pytest
from tests.data.conftest import csv_source, folder_source, write_list, write_pictures

from arcloop.data import SPLITS, Store, prepare, store_key, validate
from arcloop.errors import DataError

FULL = {"train": 3, "val": 2, "gallery": 2, "query": 2}
ONLY_QUERY = {"query": 3}
STRATIFIED = {"ant": ONLY_QUERY, "bee": FULL, "cat": FULL, "dog": ONLY_QUERY, "eel": FULL}
DISJOINT = {
    "ant": ONLY_QUERY, "bee": {"gallery": 2, "query": 2}, "cat": {"val": 2}, "dog": ONLY_QUERY,
    "eel": {"train": 3}, "fox": {"train": 3},
}  # fmt: skip


def write(root, counts, first=0):
    """Write root/<split>/<class> with as many pictures as `counts` states."""
    for name, of_class in counts.items():
        for split, number in of_class.items():
            seed = 100 * SPLITS.index(split) + ord(name[0]) + 1000 * first
            write_pictures(root / "new", number, seed=seed)
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for file in sorted((root / "new").iterdir()):
                file.rename(root / split / name / f"{first}-{file.name}")
            (root / "new").rmdir()


def stored_counts(store):
    """Return class -> split -> number of rows."""
    counts = {name: Counter() for name in store.classes}
    for split in SPLITS:
        for label in store.labels(split):
            counts[store.classes[label]][split] += 1
    return counts


@pytest.mark.parametrize("kind", ["folders", "list"])
@pytest.mark.parametrize(
    ("split", "counts", "classes", "trained"),
    [
        ("stratified", STRATIFIED, ["bee", "cat", "eel", "ant", "dog"], 3),
        ("disjoint", DISJOINT, ["eel", "fox", "cat", "bee", "ant", "dog"], 2),
        ("evaluation", STRATIFIED, ["bee", "cat", "eel", "ant", "dog"], 0),
        ("evaluation", DISJOINT, ["bee", "ant", "dog"], 0),
    ],
)
def test_they_have_the_last_labels_and_are_reported_by_validation(
    tmp_path, settings, capsys, kind, split, counts, classes, trained
):
    root = tmp_path / "root"
    write(root, counts)
    if kind == "folders":
        source = folder_source(root, split=split)
    else:
        file = write_list(root, "*/*/*.png", split=lambda file: file.parent.parent.name)
        source = csv_source(file, split=split)
    store = Store(prepare(source, tmp_path / "store", workers=1))
    assert store.classes == classes
    assert store.num_train_classes == trained
    kept = ("gallery", "query") if split == "evaluation" else SPLITS
    assert stored_counts(store) == {
        name: Counter({part: n for part, n in counts[name].items() if part in kept})
        for name in classes
    }
    validate(tmp_path / "store", tmp_path / "validation", settings)
    report = json.loads((tmp_path / "validation/report.json").read_bytes())
    assert report["query_only"] == {"classes": 2, "images": 6}
    assert "2 classes are only in query: their 6 images" in " ".join(
        capsys.readouterr().err.split()
    )
    page = " ".join((tmp_path / "validation/report.html").read_text().split())
    assert "2 classes are only in query: their 6 images" in page


@pytest.mark.parametrize("missing", [{"gallery"}, {"gallery", "val"}, {"train", "gallery"}])
def test_a_class_that_is_also_in_train_or_val_needs_images_in_gallery(tmp_path, settings, missing):
    counts = STRATIFIED | {"cat": {s: n for s, n in FULL.items() if s not in missing}}
    write(tmp_path / "root", counts)
    prepare(folder_source(tmp_path / "root"), tmp_path / "store", workers=1)
    with pytest.raises(DataError, match=r"gallery: class 'cat' has 0 image\(s\); at least 1"):
        validate(tmp_path / "store", tmp_path / "validation", settings)


def test_an_empty_folder_of_a_class_with_disjoint_splits(tmp_path, settings):
    write(tmp_path / "root", DISJOINT)
    (tmp_path / "root/train/aaa").mkdir()
    prepare(folder_source(tmp_path / "root", split="disjoint"), tmp_path / "store", workers=1)
    store = Store.open(tmp_path / "store")
    assert store.classes == ["eel", "fox", "cat", "bee", "ant", "dog"]
    assert store.labels("query").tolist() == [4, 4, 4, 3, 3, 5, 5, 5]


@pytest.fixture
def appended(tmp_path):
    """A source with query-only classes, and a function that adds pictures and appends them."""
    root = tmp_path / "root"
    write(root, STRATIFIED)
    source = folder_source(root)

    def append(counts):
        write(root, counts, first=1)
        return Store(prepare(source, tmp_path / store_key(source), append=True, workers=1))

    return append({}), append


def test_images_of_known_and_new_query_only_classes_are_appended(appended):
    store, append = appended
    before = {split: store.labels(split).tolist() for split in SPLITS}
    grown = append({"ant": {"query": 2}, "aaa": {"query": 1}, "bee": {"gallery": 1, "train": 1}})
    assert grown.artifact.parents == {"store": store.artifact.sha256}
    assert grown.classes == ["bee", "cat", "eel", "ant", "dog", "aaa"]
    assert grown.num_train_classes == 3
    for split in SPLITS:
        assert grown.labels(split)[: len(before[split])].tolist() == before[split]
    assert stored_counts(grown)["aaa"] == {"query": 1}
    assert stored_counts(grown)["ant"] == {"query": 5}


@pytest.mark.parametrize("name", ["ant", "zoo"])
def test_a_class_of_train_cannot_be_appended_after_query_only_classes(appended, name):
    """Whether it is new, or was only in query until now."""
    with pytest.raises(DataError, match=f"new classes of train cannot .*: {name}\\. "):
        appended[1]({name: FULL})


def test_a_new_query_only_class_follows_new_classes_of_train(tmp_path):
    write(tmp_path / "root", {"bee": FULL, "cat": FULL})
    source = folder_source(tmp_path / "root")
    prepare(source, tmp_path / store_key(source), workers=1)
    write(tmp_path / "root", {"ant": ONLY_QUERY, "zoo": FULL})
    grown = Store(prepare(source, tmp_path / store_key(source), append=True, workers=1))
    assert grown.classes == ["bee", "cat", "zoo", "ant"]
    assert grown.num_train_classes == 3
    assert set(grown.labels("train")) == {0, 1, 2}
    assert np.count_nonzero(grown.labels("query") == 3) == 3
