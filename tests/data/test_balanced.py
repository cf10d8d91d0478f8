"""Balanced batches: what holds of every epoch, whatever the data, the seed and the processes."""

from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from arcloop.data.loading import sampler
from arcloop.data.loading.balanced import ClassBalancedBatches, PKBatches
from arcloop.errors import ConfigError, DataError

labels_of = st.lists(st.integers(1, 9), min_size=1, max_size=7).map(
    lambda counts: np.random.default_rng(len(counts)).permutation(
        # Not 0, 1, 2: a class may have no image in train.
        np.repeat(3 * np.arange(len(counts)) + 1, counts)
    )
)


def pk(labels, classes, of_class, *, world=1, seed=0):
    return PKBatches(
        labels_N=labels,
        batch_size=classes * of_class // world,
        world=world,
        seed=seed,
        images_per_class=of_class,
    )


def balanced(labels, batch_size, *, world=1, seed=0):
    return ClassBalancedBatches(labels_N=labels, batch_size=batch_size, world=world, seed=seed)


def epoch(batches, number=0):
    batches.set_epoch(number)
    return [rows.tolist() for rows in batches]


def parts(monkeypatch, make, number=0):
    """The batches of every process."""
    found = []
    for rank in range(2):
        monkeypatch.setattr(sampler, "place", lambda rank=rank: (rank, 2))
        found.append(epoch(make(world=2), number))
    return found


@effort(max_examples=200, deadline=None)
@given(labels_of, st.integers(1, 7), st.integers(1, 5), st.integers(0, 3))
def test_every_pk_batch_has_k_images_of_p_classes(labels, classes, of_class, seed):
    sizes = Counter(labels.tolist())
    assume(classes <= len(sizes))
    batches = pk(labels, classes, of_class, seed=seed)
    found = epoch(batches, seed)
    assert len(found) == len(batches) == max(1, len(labels) // (classes * of_class))
    for rows in found:
        counts = Counter(labels[rows].tolist())
        assert set(counts.values()) == {of_class}
        assert len(counts) == classes
        for label in counts:
            times = Counter(row for row in rows if labels[row] == label).values()
            if sizes[label] >= of_class:
                assert max(times) == 1
            else:  # all that there are, as evenly as can be
                assert len(times) == sizes[label]
                assert max(times) - min(times) <= 1
    turns = Counter(labels[list(chain(*found))].tolist())
    assert max(turns.values()) - min(turns[label] for label in sizes) <= of_class


@effort(max_examples=200, deadline=None)
@given(labels_of, st.integers(1, 20), st.integers(0, 3))
def test_classes_come_equally_often_and_so_do_their_images(labels, batch_size, seed):
    assume(len(labels) >= 2)
    batches = balanced(labels, batch_size, seed=seed)
    found = epoch(batches, seed)
    size = min(batch_size, len(labels))
    assert [len(rows) for rows in found] == [size] * (len(labels) // size)
    rows = list(chain(*found))
    turns = Counter(labels[rows].tolist())
    assert max(turns.values()) - min(turns[label] for label in set(labels.tolist())) <= 1
    times = Counter(rows)
    for label in turns:
        of_class = [times[row] for row in np.flatnonzero(labels == label).tolist()]
        assert max(of_class) - min(of_class) <= 1


LABELS = np.repeat(np.arange(6), [3, 40, 5, 8, 9, 38])


@pytest.mark.parametrize("make", [
    lambda **settings: pk(LABELS, 4, 2, **settings),
    lambda **settings: balanced(LABELS, 8 // settings.get("world", 1), **settings),
])  # fmt: skip
def test_order_is_of_seed_and_epoch_and_resumes_and_is_shared(monkeypatch, make):
    whole = epoch(make(), 3)
    assert whole == epoch(make(), 3)
    assert whole != epoch(make(), 4)
    assert whole != epoch(make(seed=1), 3)
    resumed = make()
    resumed.first = 5
    assert epoch(resumed, 3) == whole[5:]
    assert len(resumed) == len(whole)
    together = [sorted(one + two) for one, two in zip(*parts(monkeypatch, make, 3), strict=True)]
    assert together == whole


def test_a_process_has_whole_classes_where_they_can_be_shared_out(monkeypatch):
    for found in parts(monkeypatch, lambda world: pk(LABELS, 4, 2, world=world)):
        for rows in found:
            assert set(Counter(LABELS[rows].tolist()).values()) == {2}


def test_rare_classes_are_not_first_or_last_in_an_epoch():
    """Every class turns up in every few batches, however many images it has."""
    found = epoch(pk(np.repeat(np.arange(5), [4, 400, 4, 4, 4]), 4, 2))
    for batch, following in pairwise(found):
        labels = np.repeat(np.arange(5), [4, 400, 4, 4, 4])[batch + following]
        assert set(labels.tolist()) == set(range(5))


@pytest.mark.parametrize("make", [pk, lambda labels, *_: balanced(labels, 4)])
def test_images_of_a_class_come_in_random_order(make):
    """What comes first and what comes together changes from epoch to epoch."""
    labels = np.repeat([0, 1], 50)
    firsts = [epoch(make(labels, 2, 2), number)[0] for number in range(20)]
    assert len({row for rows in firsts for row in rows}) > 40
    assert len({tuple(rows) for rows in firsts}) == 20


def test_more_classes_than_there_are():
    with pytest.raises(ConfigError) as caught:
        PKBatches(labels_N=np.arange(200) % 10, batch_size=128, world=2, seed=0, images_per_class=4)
    assert caught.value.what == (
        "a global batch of 256 images (2 processes) with 4 of each class takes 64 classes,"
        " but train has 10"
    )
    assert "sampler.images_per_class, loader.batch_size" in str(caught.value)
    assert caught.value.remedy == "pass sampler.images_per_class=32 or loader.batch_size=20"
    for batch_size, of_class in ((128, 32), (20, 4)):  # what it advises
        PKBatches(labels_N=np.arange(200) % 10, batch_size=batch_size, world=2, seed=0,
                  images_per_class=of_class)  # fmt: skip


def test_k_that_does_not_divide_the_batch():
    with pytest.raises(ConfigError, match="10 images cannot hold 4 of each class") as caught:
        PKBatches(labels_N=np.arange(40), batch_size=10, world=1, seed=0, images_per_class=4)
    assert "1, 2, 5, 10" in caught.value.remedy


def test_k_of_none():
    with pytest.raises(ConfigError, match="images_per_class=0"):
        PKBatches(labels_N=np.arange(40), batch_size=10, world=1, seed=0, images_per_class=0)


def test_too_few_images():
    with pytest.raises(DataError, match="too few"):
        balanced(np.zeros(1, np.int64), 4)
