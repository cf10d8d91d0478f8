"""Which classes are left out of training."""

import numpy as np
import pytest
from tests.data.conftest import synthetic_source

from arcloop.config.schema import CalibrationSettings
from arcloop.data import Store, prepare
from arcloop.data.splits.held_out import choose_held_out_classes, trained_labels
from arcloop.errors import ConfigError


def make_store(folder, **changed):
    prepare(synthetic_source(**changed), folder)
    return Store.open(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rows = {"train": 200, "val": 200, "gallery": 100, "query": 100}
    return make_store(tmp_path_factory.mktemp("100") / "store", num_classes=100, **rows)


@pytest.fixture(scope="module")
def smaller(tmp_path_factory):
    rows = {"train": 198, "val": 198, "gallery": 99, "query": 99}
    return make_store(tmp_path_factory.mktemp("99") / "store", num_classes=99, **rows)


def choose(store, held_out, *, seed=0, unknown=None):
    settings = CalibrationSettings(
        far=0.01, max_queries=100, held_out_classes=held_out, unknown=unknown
    )
    return choose_held_out_classes(store, settings, seed)


@pytest.mark.parametrize(
    ("held_out", "count"),
    [("auto", 10), (None, 0), (0, 0), (0.0, 0), (7, 7), (0.25, 25), (0.001, 1), (98, 98)],
)
def test_the_number_of_held_out_classes(store, held_out, count):
    chosen = choose(store, held_out)
    assert len(set(chosen)) == count
    assert chosen == [name for name in store.classes if name in chosen]  # in their order
    assert chosen == choose(store, held_out)


def test_auto_holds_out_nothing_below_100_classes_or_with_unknown_images(store, smaller):
    assert choose(smaller, "auto") == []
    assert choose(store, "auto", unknown="pictures") == []
    assert len(choose(store, 5, unknown="pictures")) == 5


def test_the_seed_changes_the_choice_and_a_new_class_changes_at_most_one(store, smaller):
    assert choose(store, 20) != choose(store, 20, seed=1)
    assert len(set(choose(smaller, 20)) - set(choose(store, 20))) <= 1


def test_unseen_val_classes_make_held_out_classes_unnecessary(tmp_path):
    rows = {"train": 600, "val": 600, "gallery": 600}
    disjoint = make_store(tmp_path / "store", num_classes=300, split="disjoint", **rows)
    assert disjoint.num_train_classes >= 100
    assert choose(disjoint, "auto") == choose(disjoint, 0) == []
    with pytest.raises(ConfigError, match="held_out_classes=2 holds out classes, but val already"):
        choose(disjoint, 2)


@pytest.mark.parametrize("held_out", [99, 100, 1.0, 0.99])
def test_at_least_two_classes_remain(store, held_out):
    with pytest.raises(ConfigError, match=f"held_out_classes={held_out} leaves [01] of 100"):
        choose(store, held_out)


@pytest.mark.parametrize("value", [-1, 1.5, -0.1, "some", True, [1]])
def test_an_impossible_value_is_reported(value):
    with pytest.raises(ConfigError, match="must be auto, null, a number of 0 or more, or a share"):
        CalibrationSettings(far=0.01, max_queries=100, held_out_classes=value, unknown=None)


def test_the_trained_classes_are_numbered_without_gaps(store):
    held_out = choose(store, 30)
    label_C = trained_labels(store, held_out)
    trained = [store.classes[label] for label in np.argsort(label_C, kind="stable")[30:]]
    assert trained == [name for name in store.classes if name not in held_out]
    assert sorted(label_C.tolist()) == [-1] * 30 + list(range(70))
