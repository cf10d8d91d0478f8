"""Classes with few images: left out with data.min_images, otherwise named in an error."""

import json

import pytest
from tests.data.conftest import csv_source, folder_source, write_list, write_pictures

from arcloop.data import SPLITS, Store, prepare, store_key, validate
from arcloop.errors import DataError


@pytest.fixture
def tailed(pictures):
    """Three classes of 10, 15 and 20 pictures, then classes of 4, 1 and no pictures."""
    write_pictures(pictures / "cat", 4, seed=30)
    write_pictures(pictures / "aaa", 1, seed=31)
    (pictures / "none").mkdir()
    return pictures


def test_without_it_the_error_names_the_classes_and_offers_it(tailed):
    with pytest.raises(DataError, match=r"'aaa' \(1\), 'cat' \(4\), 'none' \(0\)") as caught:
        folder_source(tailed).open()
    assert "data.min_images=6" in caught.value.remedy
    assert folder_source(tailed, min_images=6).open().classes == ["ant", "bee", "ölkäfer"]


@pytest.mark.parametrize("kind", ["folders", "list"])
def test_small_classes_are_left_out_and_reported(tmp_path, tailed, settings, capsys, kind):
    if kind == "list":
        source = csv_source(write_list(tailed), min_images=5)
    else:
        source = folder_source(tailed, min_images=5)
    artifact = prepare(source, tmp_path / "store", workers=1)
    store = Store(artifact)
    assert store.classes == ["ant", "bee", "ölkäfer"]
    assert sum(store.rows(split) for split in SPLITS) == 45
    number = 2 if kind == "list" else 3
    report = f"{number} classes with 5 images, because each has fewer than data.min_images=5: 'aaa'"
    assert report in " ".join(capsys.readouterr().err.split())
    assert artifact.info["passed_over"][-1].startswith(report)
    validate(tmp_path / "store", tmp_path / "validation", settings)
    page = (tmp_path / "validation/report.html").read_text(encoding="utf-8")
    assert f"{number} classes with 5 images" in page
    # The others are split as if the small classes did not exist.
    for name in ("aaa", "cat"):
        for file in (tailed / name).iterdir():
            file.unlink()
        (tailed / name).rmdir()
    (tailed / "none").rmdir()
    alone = prepare(folder_source(tailed), tmp_path / "alone", workers=1)
    for split in SPLITS:
        assert store.labels(split).tolist() == Store(alone).labels(split).tolist()


def test_with_given_splits_the_images_of_all_splits_are_counted(tmp_path):
    """A class of query only is not left out, because no image of it is needed elsewhere."""
    root, full = tmp_path / "root", {"train": 2, "val": 2, "gallery": 1, "query": 1}
    small = {"train": 1, "val": 2, "gallery": 1, "query": 1}
    counts = {"ant": small, "bee": full, "cat": full, "dog": {"query": 1}}
    for name, of_class in counts.items():
        for split, number in of_class.items():
            write_pictures(root / split / name, number, seed=10 * ord(name[0]) + number)
    store = Store(prepare(folder_source(root, min_images=6), tmp_path / "store", workers=1))
    assert store.classes == ["bee", "cat", "dog"]
    assert store.num_train_classes == 2
    assert [store.rows(split) for split in SPLITS] == [4, 4, 2, 3]


def test_a_class_is_appended_when_it_has_enough_images(tmp_path, tailed):
    source = folder_source(tailed, min_images=6)
    prepare(source, tmp_path / store_key(source), workers=1)
    write_pictures(tailed / "new", 4, seed=77)
    for number, file in enumerate(sorted((tailed / "new").iterdir())):
        file.rename(tailed / "cat" / f"new-{number}.png")
    (tailed / "new").rmdir()
    grown = prepare(source, tmp_path / store_key(source), append=True, workers=1)
    assert json.loads((grown.path / "classes.json").read_bytes()) == [
        "ant",
        "bee",
        "ölkäfer",
        "cat",
    ]
    assert sum(grown.info["appended"].values()) == 8
    assert "'aaa' (1)" in grown.info["passed_over"][-1]


def test_no_class_is_left(tailed):
    with pytest.raises(DataError, match=r"every class has fewer than data\.min_images=21 images"):
        folder_source(tailed, min_images=21).open()


def test_raised_fractions_are_printed_and_recorded(tmp_path, capsys):
    for seed in range(4):
        write_pictures(tmp_path / f"root/c{seed}", 8, seed=seed)
    source = folder_source(tmp_path / "root", val=0.1)
    artifact = prepare(source, tmp_path / "store", workers=1)
    notice = "data.val=0.1 gives 25.0% (8 of 32 images): each of 4 classes needs 2 image(s) in val"
    assert artifact.info["notices"] == [notice]
    assert notice in " ".join(capsys.readouterr().err.split())
