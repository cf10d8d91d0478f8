import gzip
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcloop.data.splits.apportionment import apportion
from arcloop.data.splits.stratified import describe_sizes, stratify
from arcloop.errors import ConfigError, DataError

LARGE = {"val": 0.1, "gallery": 0.2}


def split(labels, sizes, seed=0):
    classes = [f"c{label}" for label in range(max(labels) + 1)]
    return stratify(np.asarray(labels), classes, sizes, seed, "here")


def test_every_row_is_in_one_split():
    labels = np.random.default_rng(0).integers(0, 7, 500)
    rows = split(labels, LARGE)
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(500))
    assert all((np.diff(part) > 0).all() for part in rows.values())


def test_totals_are_exact_and_classes_within_one_row_of_their_share():
    labels = np.random.default_rng(1).integers(0, 10, 6000)
    rows = split(labels, {"val": 517, "gallery": 1001})
    assert {name: len(part) for name, part in rows.items()} == {
        "train": 4482, "val": 517, "gallery": 1001,
    }  # fmt: skip
    for name, total in (("val", 517), ("gallery", 1001)):
        for label in range(10):
            quota = total * (labels == label).sum() / 6000
            assert abs((labels[rows[name]] == label).sum() - quota) < 1


def test_seed_decides_which_rows_and_not_how_many():
    labels = np.random.default_rng(2).integers(0, 5, 400)
    one, same, other = (split(labels, LARGE, seed)["val"] for seed in (3, 3, 4))
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()
    assert Counter(labels[one].tolist()) == Counter(labels[other].tolist())


def test_draw_is_not_by_position():
    """With labels in a circle, a draw by position would take neighbouring rows."""
    rows = split(np.arange(3000) % 3, {"val": 0.5})["val"]
    assert 1300 < np.median(rows) < 1700
    assert 0.4 < np.mean(np.diff(rows) == 1) < 0.6


def test_small_class_has_a_row_everywhere_and_two_in_val():
    labels = [0] * 1000 + [1] * 5
    rows = split(labels, {"val": 0.1, "gallery": 0.1, "query": 0.1})
    found = {name: int((part >= 1000).sum()) for name, part in rows.items()}
    assert found == {"train": 1, "val": 2, "gallery": 1, "query": 1}


def test_class_of_four_is_refused():
    with pytest.raises(DataError, match=r"too few images to split .* class 'c1' \(4\)") as caught:
        split([0] * 1000 + [1] * 4, {"val": 0.1, "gallery": 0.1, "query": 0.1})
    assert "at least 6 images (5 with validation.min_images_per_class=1)" in caught.value.remedy
    assert "data.split=disjoint" in caught.value.remedy


@given(
    counts=st.lists(st.integers(5, 20) | st.integers(100, 300), min_size=2, max_size=20),
    shares=st.just([0.1, 0.2, 0.2]) | st.lists(st.floats(0.06, 0.25), min_size=3, max_size=3),
)
def test_fractions_give_every_split_the_rows_that_validation_requires(counts, shares):
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = split(labels, dict(zip(("val", "gallery", "query"), shares, strict=True)))
    found = {name: np.bincount(labels[part]) for name, part in rows.items()}
    assert (found["train"] >= np.where(np.array(counts) > 5, 2, 1)).all()
    assert (found["val"] >= 2).all()
    for name in ("gallery", "query"):
        assert len(found[name]) == len(counts)
        assert (found[name] >= 1).all()


def test_a_raised_fraction_takes_rows_from_the_other_fractions():
    rows = split(np.arange(60) % 10, {"val": 0.1, "gallery": 0.3, "query": 0.2})
    assert {name: len(part) for name, part in rows.items()} == {
        "train": 20, "val": 20, "gallery": 10, "query": 10,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "size", "least"), [("val", 19, 20), ("gallery", 9, 10)])
def test_a_number_that_is_too_small_for_the_classes_is_refused(name, size, least):
    sizes = {"val": 30, "gallery": 20} | {name: size}
    with pytest.raises(
        ConfigError, match=f"data.{name}={size} is too small: .* 10 classes"
    ) as error:
        split(np.arange(100) % 10, sizes)
    assert f"data.{name}={least} or more" in error.value.remedy
    split(np.arange(100) % 10, sizes | {name: least})


def test_largest_remainder_by_hand():
    """Quotas 2.0, 4.0, 1.0; then 3.5, 3.5, 7.0, where the seed decides between equal classes."""
    assert apportion(np.array([10, 20, 5]), {"gallery": 7}, 0)["gallery"].tolist() == [2, 4, 1]
    tied = [apportion(np.array([7, 7, 14]), {"gallery": 14}, s)["gallery"] for s in range(9)]
    assert {tuple(rows.tolist()) for rows in tied} == {(4, 3, 7), (3, 4, 7)}
    assert apportion(np.array([10, 20, 5]), {"val": 7}, 0)["val"].tolist() == [2, 3, 2]
    # Quotas 2.0, 2.6, 5.4.
    assert apportion(np.array([10, 13, 27]), {"gallery": 10}, 0)["gallery"].tolist() == [2, 3, 5]


@pytest.mark.parametrize(("size", "expected"), [(8, {2, 3}), (7, {2, 3}), (30, {15})])
def test_the_names_of_classes_do_not_decide_their_sizes(size, expected):
    """Of 400 classes of one size, the rows of train differ by few, wherever their names sort."""
    labels = np.arange(400 * size) % 400
    sizes = {"val": 0.1, "gallery": 0.2, "query": 0.2}
    per_seed = []
    for seed in range(3):
        train = np.bincount(labels[split(labels, sizes, seed)["train"]], minlength=400)
        assert set(train.tolist()) == expected
        assert abs(train[:200].sum() - train[200:].sum()) < 40
        per_seed.append(train.tolist())
    assert (per_seed[0] == per_seed[1]) is (len(expected) == 1)


def test_the_seed_decides_which_classes_have_a_second_row_in_train():
    labels = np.arange(100) % 10
    sizes = {"val": 30, "gallery": 30, "query": 25}
    found = [np.bincount(labels[split(labels, sizes, seed)["train"]]) for seed in range(2)]
    assert [sorted(counts.tolist()) for counts in found] == [[1] * 5 + [2] * 5] * 2
    assert found[0].tolist() != found[1].tolist()


def test_sizes_that_differ_from_the_settings_are_described():
    """The minima of 10 classes of 8 images: 2 in val, 1 in gallery and in query."""
    labels = np.arange(80) % 10
    sizes = {"val": 0.1, "gallery": 0.4, "query": 0.2}
    rows = split(labels, sizes)
    assert describe_sizes(rows, sizes, 10, grouped=False) == [
        "data.val=0.1 gives 25.0% (20 of 80 images): each of 10 classes needs 2 image(s) in val",
        "data.gallery=0.4 gives 30.0% (24 of 80 images): other splits need more images",
    ]
    assert describe_sizes(rows, {"val": 20, "query": 16}, 10, grouped=False) == []


def test_mnist_is_split_as_by_the_first_version():
    """Its stores stay valid, because no two classes of its training set have the same size."""
    file = Path(__file__).parents[3] / "data/mnist/train-labels-idx1-ubyte.gz"
    labels = np.frombuffer(gzip.decompress(file.read_bytes())[8:], np.uint8)
    rows = split(labels, {"val": 5000, "gallery": 10000})
    digest = hashlib.sha256(np.concatenate(list(rows.values())).tobytes())
    assert digest.hexdigest()[:16] == "10f8d60a2d048b16"


def test_when_all_but_one_row_of_a_class_is_asked_for_train_keeps_that_one():
    counts = np.array([4, 5, 4, 99])
    given_out = apportion(counts, {"val": 40, "gallery": 40, "query": 28}, 0)
    assert (counts - sum(given_out.values())).tolist() == [1, 1, 1, 1]
    assert all((rows >= 1).all() for rows in given_out.values())


@given(
    counts=st.lists(st.integers(4, 60), min_size=1, max_size=12),
    shares=st.lists(st.floats(0.05, 0.3), min_size=3, max_size=3),
)
def test_apportionment_is_possible_and_exact(counts, shares):
    counts = np.array(counts)
    names = ("val", "gallery", "query")
    totals = {name: max(1, round(s * counts.sum())) for name, s in zip(names, shares, strict=True)}
    if counts.sum() - sum(totals.values()) < len(counts):
        return
    given_out = apportion(counts, totals, 0)
    for name, rows in given_out.items():
        assert rows.sum() == totals[name]
        assert (rows >= min(1, totals[name] // len(counts))).all()
    assert (counts - sum(given_out.values()) >= 1).all()


def test_class_with_one_image_is_named():
    with pytest.raises(DataError, match=r"'c1' \(1\), 'c2' \(2\)") as caught:
        split([0] * 50 + [1] + [2, 2], LARGE)
    assert "at least 5 images (4 with" in caught.value.remedy


@pytest.mark.parametrize("sizes", [{"val": 100}, {"val": 60, "gallery": 39}, {"val": 1.0}])
def test_splits_larger_than_the_data(sizes):
    with pytest.raises(DataError, match="larger than the data set: val="):
        split([0, 1] * 50, sizes)


def test_share_of_no_rows():
    with pytest.raises(DataError, match=r"val=0\.001 of 100 images selects no image"):
        split([0, 1] * 50, {"val": 0.001})
