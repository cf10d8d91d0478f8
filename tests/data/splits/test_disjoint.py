"""Splits without a common class: drawn at random, or given by the source."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from tests.data.conftest import (
    csv_source,
    folder_source,
    idx_source,
    synthetic_source,
    write_idx_set,
    write_list,
    write_pictures,
)

from arcloop.artifacts.writer import write_manifest
from arcloop.data import SPLITS, Store, prepare, validate
from arcloop.data.splits.disjoint import split_by_class
from arcloop.errors import DataError
from arcloop.runtime.images import decode

STORED = ("train", "val", "gallery")


@effort(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(2, 5), min_size=6, max_size=12),
    st.integers(2, 3) | st.just(0.25),
    st.integers(2, 3) | st.just(0.3),
    st.integers(0, 99),
)
def test_classes_go_to_one_split_with_all_their_rows(counts, val, test, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    names = [f"c{label}" for label in range(len(counts))]
    wanted = [round(s * len(names)) if isinstance(s, float) else s for s in (val, test)]
    assume(min(wanted) >= 2)
    assume(len(names) - sum(wanted) >= 2)
    settings = {"val_classes": val, "test_classes": test, "seed": seed, "where": "here"}
    division = split_by_class(labels, names, **settings)
    assert sorted(np.concatenate(list(division.rows.values())).tolist()) == list(range(len(labels)))
    of_split = {split: set(labels[rows].tolist()) for split, rows in division.rows.items()}
    assert [len(of_split[split]) for split in ("val", "gallery")] == wanted
    assert sum(map(len, of_split.values())) == len(names)
    for split in STORED:  # train first, without a gap
        new = set(division.new_labels(len(names))[sorted(of_split[split])].tolist())
        start = {"train": 0, "val": len(of_split["train"])}.get(split, len(names) - wanted[1])
        assert new == set(range(start, start + len(new)))
    assert division.num_train_classes == len(of_split["train"])
    assert division.leave_one_out
    assert (division.class_order[division.new_labels(len(names))] == np.arange(len(names))).all()
    again = split_by_class(labels, names, **settings)
    assert all((again.rows[split] == rows).all() for split, rows in division.rows.items())


def test_another_seed_draws_other_classes():
    labels = np.arange(60) % 20
    names = [str(label) for label in range(20)]
    drawn = {
        tuple(
            split_by_class(
                labels, names, val_classes=5, test_classes=5, seed=seed, where=""
            ).class_order
        )
        for seed in range(5)
    }
    assert len(drawn) == 5


def test_too_few_classes():
    with pytest.raises(DataError) as caught:
        split_by_class(
            np.arange(8) % 4, list("abcd"), val_classes=0.2, test_classes=2, seed=0, where="x"
        )
    assert caught.value.what == (
        "4 classes cannot be divided into 1 for train, 1 for val, 2 for gallery:"
        " each split needs at least 2"
    )
    assert "data.val_classes" in caught.value.remedy


def test_evaluated_classes_of_one_image_are_named():
    labels = np.array([0, 1, 2, 3, 4, 5, 0, 1])
    with pytest.raises(DataError, match="only one image of") as caught:
        split_by_class(labels, list("abcdef"), val_classes=2, test_classes=2, seed=0, where="x")
    assert sum(repr(name) in str(caught.value) for name in "cdef") >= 2


@pytest.fixture
def five(tmp_path):
    """A folder of eight classes, each of five pictures."""
    for seed, name in enumerate("hgfedcba"):
        write_pictures(tmp_path / "root" / name, 5, seed=seed)
    return tmp_path / "root"


def test_bad_pictures_are_left_out_of_gallery_and_query_alike(tmp_path, five):
    settings = {"split": "disjoint", "on_bad_image": "skip"}
    order = folder_source(five, **settings).open().order["gallery"]
    bad = folder_source(five, **settings).open().files.path(order[3])
    open(bad, "wb").close()
    prepare(folder_source(five, **settings), tmp_path / "store", workers=1)
    store = Store.open(tmp_path / "store")
    assert store.rows("gallery") == store.rows("query") == len(order) - 1
    assert store.labels("query").tolist() == store.labels("gallery").tolist()


def class_names(store, split):
    return {store.classes[label] for label in set(store.labels(split).tolist())}


def require_right(store, place):
    """Every image has the name of the folder that it comes from; place: image -> name."""
    for split in SPLITS:
        images, labels = store.gather(split, np.arange(store.rows(split)))
        for image, label in zip(images, labels.tolist(), strict=True):
            assert place[image.tobytes()] == store.classes[label]


def place_of(root, pattern="*/*.png"):
    return {
        decode(path, height=6, width=4, channels=3).tobytes(): path.parent.name
        for path in root.glob(pattern)
    }


def test_folder(tmp_path, five, settings):
    source = folder_source(five, split="disjoint", val_classes=2, test_classes=0.4)
    artifact = prepare(source, tmp_path / "store", workers=1)
    store = Store.open(tmp_path / "store")
    assert [store.rows(split) for split in SPLITS] == [15, 10, 15, 15]
    assert store.num_train_classes == artifact.info["train_classes"] == 3
    assert set(store.labels("train").tolist()) == {0, 1, 2}
    for one, two in itertools.combinations(STORED, 2):
        assert not class_names(store, one) & class_names(store, two)
    assert sorted(store.classes) == list("abcdefgh")
    assert store.classes[:3] == sorted(store.classes[:3])
    require_right(store, place_of(five))
    validate(tmp_path / "store", tmp_path / "validation", settings)


@pytest.mark.parametrize("query", [True, False])
def test_folder_that_is_split_already(tmp_path, settings, query):
    """With query, it has other images of the classes of gallery; else gallery is also query."""
    root = tmp_path / "root"
    classes = {"train": "xyz", "val": "bc", "gallery": "am", "query": "am" if query else ""}
    for seed, (split, names) in enumerate(classes.items()):
        for name in names:
            write_pictures(root / split / name, 4, seed=100 * seed + ord(name))
    prepare(folder_source(root, split="disjoint"), tmp_path / "store", workers=1)
    store = Store.open(tmp_path / "store")
    assert store.classes == ["x", "y", "z", "b", "c", "a", "m"]
    assert store.num_train_classes == 3
    assert store.leave_one_out is not query
    assert [store.rows(split) for split in SPLITS] == [12, 8, 8, 8]
    require_right(store, place_of(root, "*/*/*.png"))
    validate(tmp_path / "store", tmp_path / "validation", settings)


def test_all_classes_in_two_splits_are_named(tmp_path):
    root = tmp_path / "root"
    for split, names in {"train": "abx", "val": "bc", "gallery": "cd", "query": "xd"}.items():
        for name in names:
            write_pictures(root / split / name, 2, seed=ord(name))
    with pytest.raises(DataError) as caught:
        folder_source(root, split="disjoint").open()
    assert caught.value.what == (
        "data.split=disjoint, but classes are in train and val: 'b';"
        " in train and gallery or query: 'x'; in val and gallery or query: 'c'"
    )


def test_listed_pictures(tmp_path, five):
    settings = {"split": "disjoint", "split_seed": 4}
    prepare(csv_source(write_list(five), **settings), tmp_path / "listed", workers=1)
    prepare(folder_source(five, **settings), tmp_path / "folder", workers=1)
    one, two = Store.open(tmp_path / "listed"), Store.open(tmp_path / "folder")
    assert one.classes == two.classes
    for split in SPLITS:
        assert all(
            np.array_equal(a, b)
            for a, b in zip(next(one.batches(split, 99)), next(two.batches(split, 99)), strict=True)
        )


def test_listed_splits_without_query(tmp_path, five):
    split_of = dict(zip("abcdefgh", [*["train"] * 3, *["gallery"] * 3, *["val"] * 2], strict=True))
    file = write_list(five, split=lambda file: split_of[file.parent.name])
    prepare(csv_source(file, split="disjoint"), tmp_path / "store", workers=1)
    store = Store.open(tmp_path / "store")
    assert store.leave_one_out
    assert store.classes == list("abcghdef")
    require_right(store, place_of(five))


def test_idx_trains_on_one_file_and_evaluates_on_the_other(tmp_path):
    made = write_idx_set(tmp_path / "idx", 120, 60, classes=8, end="")
    prepare(idx_source(tmp_path / "idx", split="disjoint"), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.num_train_classes == 4
    assert sorted(store.classes) == [str(label) for label in range(8)]
    for split, part in {"train": "train", "val": "train", "gallery": "t10k"}.items():
        images, labels = store.gather(split, np.arange(store.rows(split)))
        names = class_names(store, split)
        rows = np.isin(made[part][1].astype(str), sorted(names))
        assert (images[..., 0] == made[part][0][rows]).all()
        assert [store.classes[label] for label in labels] == made[part][1][rows].astype(
            str
        ).tolist()
    assert not class_names(store, "train") & class_names(store, "gallery")


def synthetic_store(path, **changed):
    settings = {"split": "disjoint", "num_classes": 7, "val_classes": 2, "test_classes": 2}
    prepare(synthetic_source(**(settings | changed)), path)
    return path


def changed(path, split, row, image=None, label=None):
    """Change a row of a store with one shard per split, and write the manifest again."""
    for kind, value in (("images", image), ("labels", label)):
        if value is not None:
            file = path / split / f"{kind}-00000.npy"
            values = np.load(file)
            values[row] = value
            np.save(file, values)
    manifest = json.loads((path / "manifest.json").read_text())
    write_manifest(path, "store", config=manifest["config"], parents={}, info=manifest["info"])


def errors(path, settings):
    with pytest.raises(DataError):
        validate(path, path.parent / "validation", settings)
    report = json.loads((path.parent / "validation/report.json").read_text())
    return [(fault["check"], fault["split"], fault["message"]) for fault in report["errors"]]


def test_validation_knows_the_protocol(tmp_path, settings):
    path = synthetic_store(tmp_path / "store", shard_rows=64)
    assert validate(path, tmp_path / "v", settings).info == {
        "passed": True, "errors": 0, "warnings": 0
    }  # fmt: skip
    report = json.loads((tmp_path / "v/report.json").read_text())
    counted = sum(sum(of_class.values()) for of_class in report["classes"].values())
    splits = ("train", "val", "gallery")  # query is gallery, whose images count once
    assert counted == sum(report["splits"][split]["rows"] for split in splits)
    page = (tmp_path / "v/report.html").read_text()
    assert f'<b>{counted}</b><span class="soft">images</span>' in page
    images = np.load(path / "train/images-00000.npy")
    changed(path, "gallery", 3, image=images[0])
    message = (
        "the same image as train/images-00000.npy row 0, but of class 'class-6' instead of"
        " 'class-0'"
    )
    assert errors(path, settings) == [("leak", "gallery", message)]


def test_a_repeated_image_is_a_leak_with_leave_one_out(tmp_path, settings):
    path = synthetic_store(tmp_path / "store", shard_rows=64)
    changed(path, "gallery", 6, image=np.load(path / "gallery/images-00000.npy")[2])
    assert errors(path, settings) == [
        ("leak", "gallery", "the same image as gallery/images-00000.npy row 2")
    ]


def test_a_class_needs_two_images_with_leave_one_out(tmp_path, settings):
    path = synthetic_store(tmp_path / "store", shard_rows=64)
    changed(path, "gallery", slice(3, None, 2), label=5)
    assert errors(path, settings) == [
        ("class size", "gallery", "class 'class-6' has 1 image(s); at least 2 are needed")
    ]


def test_a_class_in_two_splits_and_a_class_in_none(tmp_path, settings):
    path = synthetic_store(tmp_path / "store", shard_rows=64)
    labels = np.load(path / "val/labels-00000.npy")
    changed(path, "val", slice(None), label=np.where(labels == 4, 1, labels))
    overlap = "class 'class-1' is in train, val, but class-disjoint splits share no class"
    assert errors(path, settings) == [
        ("class size", None, "class 'class-4' has no images"),
        ("class overlap", None, overlap),
    ]
