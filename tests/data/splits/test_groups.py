"""Splits that keep groups together: properties, for groups within classes and across classes."""

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from arcloop.data import SPLITS
from arcloop.data.splits.apportionment import MIN_ROWS
from arcloop.data.splits.disjoint import split_by_class
from arcloop.data.splits.stratified import assign_new, stratify
from arcloop.errors import DataError

SIZES = {"val": 0.1, "gallery": 0.2, "query": 0.2}
SHARES = np.array([0.5, 0.1, 0.2, 0.2])
SIZES_OF_GROUPS = st.lists(st.integers(1, 9), min_size=6, max_size=14)


def split(labels, groups, seed=0, sizes=SIZES):
    """Return the position of the split of each row."""
    names = [f"c{label}" for label in range(max(labels) + 1)]
    labels, groups = np.asarray(labels), None if groups is None else np.asarray(groups)
    rows = stratify(labels, names, sizes, seed, "here", groups)
    split_N = np.full(len(labels), -1)
    for number, name in enumerate(SPLITS):
        split_N[rows[name]] = number
    assert sum(map(len, rows.values())) == len(labels)
    return split_N


def require_whole(groups, split_N):
    """Every group is in one split."""
    split_of = {}
    for group, number in zip(groups, split_N, strict=True):
        if group >= 0:
            assert split_of.setdefault(group, number) == number


def table(labels, split_N):
    counts = np.zeros((max(labels) + 1, 4), int)
    np.add.at(counts, (labels, split_N), 1)
    return counts


@given(st.lists(SIZES_OF_GROUPS, min_size=2, max_size=8), st.integers(0, 3))
def test_groups_within_classes(sizes_of, seed):
    """With 6 groups, each class is in each split. Sizes differ by less than the largest group."""
    labels = np.repeat(np.arange(len(sizes_of)), list(map(sum, sizes_of)))
    sizes = np.concatenate(sizes_of)
    groups = np.repeat(np.random.default_rng(seed).permutation(len(sizes)), sizes)
    split_N = split(labels, groups, seed)
    require_whole(groups, split_N)
    found = table(labels, split_N)
    assert (found >= [MIN_ROWS[name] for name in SPLITS]).all()
    wanted = table(labels, split(labels, None, seed))
    for row, target, of_class in zip(found, wanted, sizes_of, strict=True):
        assert np.abs(row - target).max() <= max(of_class)
    assert split_N.tolist() == split(labels, groups, seed).tolist()


@given(st.lists(st.integers(6, 40), min_size=2, max_size=9), st.integers(0, 3))
def test_without_any_group_the_sizes_are_exact(counts, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    found = table(labels, split(labels, np.full(len(labels), -1), seed))
    assert found.tolist() == table(labels, split(labels, None, seed)).tolist()


@given(st.data(), st.integers(2, 6), st.integers(4, 14))
def test_groups_across_classes_are_divided_completely_or_refused(data, num_classes, num_groups):
    labels = np.repeat(np.arange(num_classes), 20)
    group = st.integers(-1, num_groups - 1)
    groups = data.draw(st.lists(group, min_size=len(labels), max_size=len(labels)))
    try:
        split_N = split(labels, groups)
    except DataError:
        event("refused")
        return
    require_whole(groups, split_N)
    assert (table(labels, split_N) >= [1, 2, 1, 1]).all()


def test_sessions_with_images_of_many_classes():
    """Sizes hold within 4 percentage points, with each class in an eighth of the sessions."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(200), 40)
    groups = np.concatenate([np.repeat(rng.choice(160, 20, replace=False), 2) for _ in range(200)])
    split_N = split(labels, groups)
    require_whole(groups, split_N)
    assert (table(labels, split_N) >= [1, 2, 1, 1]).all()
    assert np.bincount(split_N) / len(labels) == pytest.approx(SHARES, abs=0.04)


def test_large_classes_have_the_given_sizes():
    labels = np.repeat(np.arange(30), 90)
    split_N = split(labels, np.arange(len(labels)) // 3)
    assert np.bincount(split_N) / len(labels) == pytest.approx(SHARES, abs=0.01)


def test_seed_decides_which_groups():
    labels = np.repeat(np.arange(5), 60)
    groups = np.arange(300) // 3
    in_train = np.mean([split(labels, groups, seed) == 0 for seed in range(20)], axis=0)
    assert 0.15 < in_train.min() < in_train.max() < 0.85  # 0.5 on average


def test_classes_with_too_few_groups_are_named_with_their_number():
    labels = np.repeat([0, 1, 2], [60, 30, 9])
    groups = np.concatenate([np.arange(60) // 5, 50 + np.arange(30) // 10, np.full(9, -1)])
    groups[90] = 52  # a row of class 2 that is in a group of class 1
    with pytest.raises(DataError, match=r"query: 'c1' \(3\)\n") as caught:
        split(labels, groups)
    assert "at least 6 groups" in caught.value.remedy


@given(st.lists(SIZES_OF_GROUPS, min_size=1, max_size=5), st.lists(st.integers(-1, 9), max_size=40))
def test_new_images_of_a_stored_group_go_to_its_split(sizes_of, new_groups):
    """Groups 0 to 5 are stored, one or two in each split; the others are new."""
    stored = np.tile([10, 4, 4, 4], (2, 1))
    split_G = np.array([0, 1, 2, 3, 0, 3] + [-1] * 4)
    sizes = np.concatenate(sizes_of)
    labels = [number % 2 for number in range(len(new_groups))]
    labels += np.repeat(2 + np.arange(len(sizes_of)), list(map(sum, sizes_of))).tolist()
    groups = np.array([*new_groups, *np.repeat(10 + np.arange(len(sizes)), sizes)])
    split_G = np.append(split_G, np.full(len(sizes), -1))
    names = [f"c{label}" for label in range(2 + len(sizes_of))]
    drawn = assign_new(
        np.array(labels), stored, names, sizes=SIZES, seed=0, groups=groups, split_G=split_G
    )
    require_whole(groups, drawn)
    known = np.flatnonzero((groups >= 0) & (groups < 6))
    assert drawn[known].tolist() == split_G[groups[known]].tolist()
    of_new_classes = table(labels, drawn)[2:]
    assert (of_new_classes[:, [0, 2, 3]] >= 1).all()
    assert set(drawn) <= {0, 1, 2, 3}


def test_new_images_of_stored_groups_count_for_the_sizes():
    """Val gets 20 images of its stored group, and therefore none of the 12 images without group."""
    groups = np.repeat([0, -1], [20, 12])
    drawn = assign_new(
        np.zeros(32, int), np.array([[10, 4, 4, 4]]), ["c"], sizes=SIZES, seed=0, groups=groups,
        split_G=np.array([1]),
    )  # fmt: skip
    assert (drawn[:20] == 1).all()
    assert (drawn[20:] != 1).all()


@given(st.data(), st.integers(6, 15), st.integers(0, 3))
def test_with_disjoint_splits_classes_that_share_a_group_are_in_one_split(data, num_classes, seed):
    labels = np.repeat(np.arange(num_classes), 3)
    group = st.integers(-1, 2 * num_classes)
    groups = np.array(data.draw(st.lists(group, min_size=len(labels), max_size=len(labels))))
    names = [f"c{label}" for label in range(num_classes)]
    settings = {"val_classes": 2, "test_classes": 2, "seed": seed, "where": "here"}
    try:
        assigned = split_by_class(labels, names, groups=groups, **settings)
    except DataError:
        event("refused")
        return
    split_N = np.full(len(labels), -1)
    for number, rows in enumerate(assigned.rows.values()):
        split_N[rows] = number
    require_whole(groups, split_N)
    require_whole(labels, split_N)
    of_train = assigned.class_order[: assigned.num_train_classes]
    assert sorted(of_train) == sorted(set(labels[split_N == 0]))


def test_with_disjoint_splits_the_numbers_of_classes_hold_if_groups_are_small():
    labels = np.repeat(np.arange(40), 4)
    groups = np.where(labels < 20, labels // 2, -1)  # 10 pairs of classes
    names = [f"c{label}" for label in range(40)]
    rows = split_by_class(
        labels, names, val_classes=0.2, test_classes=0.4, seed=0, where="", groups=groups
    ).rows
    assert {split: len(set(labels[r])) for split, r in rows.items()} == {
        "train": 16, "val": 8, "gallery": 16,
    }  # fmt: skip


def test_with_disjoint_splits_classes_that_are_all_connected_are_refused():
    labels, groups = np.repeat(np.arange(10), 4), np.tile([0, 1, 2, 3], 10)
    with pytest.raises(DataError, match="but 10 of 10 classes are connected by groups") as caught:
        split_by_class(
            labels, [str(n) for n in range(10)], val_classes=2, test_classes=4, seed=0, where="x",
            groups=groups,
        )  # fmt: skip
    assert "data.split=stratified" in caught.value.remedy
