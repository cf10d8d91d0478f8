"""Properties of balanced batches for any labels, seed and number of processes."""

from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from arcloop.data.loading import sampler
from arcloop.data.loading.sampler import ClassBalancedBatches, ClassRows, PKBatches
from arcloop.distributed.process_group import ProcessGroup
from arcloop.errors import ConfigError, DataError

labels_of = st.lists(st.integers(1, 9), min_size=1, max_size=7).map(
    lambda counts: np.random.default_rng(len(counts)).permutation(
        # Not 0, 1, 2: a class may have no image in train.
        np.repeat(3 * np.arange(len(counts)) + 1, counts)
    )
)


def pk(labels, classes, of_class, *, world_size=1, seed=0):
    return PKBatches(
        labels_N=labels,
        batch_size=classes * of_class // world_size,
        world_size=world_size,
        seed=seed,
        images_per_class=of_class,
    )


def balanced(labels, batch_size, *, world_size=1, seed=0):
    return ClassBalancedBatches(
        labels_N=labels, batch_size=batch_size, world_size=world_size, seed=seed
    )


def epoch(batches, number=0):
    batches.set_epoch(number)
    return [rows.tolist() for rows in batches]


def parts(monkeypatch, make, number=0):
    """Return the batches of each process."""
    found = []
    for rank in range(2):
        group = ProcessGroup(rank, 2)
        monkeypatch.setattr(sampler, "current_process_group", lambda group=group: group)
        found.append(epoch(make(world_size=2), number))
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
            else:  # all rows of the class, equally often within one
                assert len(times) == sizes[label]
                assert max(times) - min(times) <= 1
    draws = Counter(labels[list(chain(*found))].tolist())
    assert max(draws.values()) - min(draws[label] for label in sizes) <= of_class


@effort(max_examples=200, deadline=None)
@given(labels_of, st.integers(1, 20), st.integers(0, 3))
def test_classes_and_their_images_are_drawn_equally_often(labels, batch_size, seed):
    assume(len(labels) >= 2)
    batches = balanced(labels, batch_size, seed=seed)
    found = epoch(batches, seed)
    size = min(batch_size, len(labels))
    assert [len(rows) for rows in found] == [size] * (len(labels) // size)
    rows = list(chain(*found))
    draws = Counter(labels[rows].tolist())
    assert max(draws.values()) - min(draws[label] for label in set(labels.tolist())) <= 1
    times = Counter(rows)
    for label in draws:
        of_class = [times[row] for row in np.flatnonzero(labels == label).tolist()]
        assert max(of_class) - min(of_class) <= 1


LABELS = np.repeat(np.arange(6), [3, 40, 5, 8, 9, 38])


@pytest.mark.parametrize("make", [
    lambda **settings: pk(LABELS, 4, 2, **settings),
    lambda **settings: balanced(LABELS, 8 // settings.get("world_size", 1), **settings),
])  # fmt: skip
def test_order_depends_on_seed_and_epoch_only(monkeypatch, make):
    whole = epoch(make(), 3)
    assert whole == epoch(make(), 3)
    assert whole != epoch(make(), 4)
    assert whole != epoch(make(seed=1), 3)
    resumed = make()
    resumed.first_batch = 5
    assert epoch(resumed, 3) == whole[5:]
    assert len(resumed) == len(whole)
    together = [sorted(one + two) for one, two in zip(*parts(monkeypatch, make, 3), strict=True)]
    assert together == whole


def test_a_class_is_in_one_process_if_p_is_divisible(monkeypatch):
    for found in parts(monkeypatch, lambda world_size: pk(LABELS, 4, 2, world_size=world_size)):
        for rows in found:
            assert set(Counter(LABELS[rows].tolist()).values()) == {2}


def test_rare_classes_are_spread_over_the_epoch():
    """Any two consecutive batches contain every class, however few images it has."""
    found = epoch(pk(np.repeat(np.arange(5), [4, 400, 4, 4, 4]), 4, 2))
    for batch, following in pairwise(found):
        labels = np.repeat(np.arange(5), [4, 400, 4, 4, 4])[batch + following]
        assert set(labels.tolist()) == set(range(5))


@pytest.mark.parametrize("make", [pk, lambda labels, *_: balanced(labels, 4)])
def test_images_of_a_class_are_drawn_in_random_order(make):
    """The first batch differs from epoch to epoch."""
    labels = np.repeat([0, 1], 50)
    firsts = [epoch(make(labels, 2, 2), number)[0] for number in range(20)]
    assert len({row for rows in firsts for row in rows}) > 40
    assert len({tuple(rows) for rows in firsts}) == 20


def test_too_few_classes_for_a_batch_are_refused():
    with pytest.raises(ConfigError) as caught:
        PKBatches(
            labels_N=np.arange(200) % 10, batch_size=128, world_size=2, seed=0, images_per_class=4
        )
    assert caught.value.what == (
        "a global batch of 256 images (2 processes) with 4 images per class needs 64 classes,"
        " but train has 10"
    )
    assert "sampler.images_per_class, loader.batch_size" in str(caught.value)
    assert caught.value.remedy == "pass sampler.images_per_class=32 or loader.batch_size=20"
    for batch_size, of_class in ((128, 32), (20, 4)):  # the suggested values
        PKBatches(labels_N=np.arange(200) % 10, batch_size=batch_size, world_size=2, seed=0,
                  images_per_class=of_class)  # fmt: skip


def test_k_must_divide_the_batch():
    with pytest.raises(
        ConfigError, match="10 images cannot be divided into groups of 4 images per class"
    ) as caught:
        PKBatches(labels_N=np.arange(40), batch_size=10, world_size=1, seed=0, images_per_class=4)
    assert "1, 2, 5, 10" in caught.value.remedy


def test_k_of_zero_is_refused():
    with pytest.raises(ConfigError, match="images_per_class=0"):
        PKBatches(labels_N=np.arange(40), batch_size=10, world_size=1, seed=0, images_per_class=0)


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="too few"):
        balanced(np.zeros(1, np.int64), 4)


@effort(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 5), st.data())
def test_rows_of_a_class_are_drawn_in_rounds(sizes, each, data):
    """By definition: a round has no row of the class twice, unless one draw has more rows."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = labels[data.draw(st.permutations(range(len(labels))))]
    classes = data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=40))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    drawn = ClassRows(labels).draw(np.array(classes, np.int64), each, random).reshape(-1, each)
    for label, size in enumerate(sizes):
        rows_of_draws = drawn[np.array(classes, np.int64) == label]
        assert set(labels[rows_of_draws.ravel()]) <= {label}
        per_round = max(1, size // each)
        for start in range(0, len(rows_of_draws), per_round):
            counts = Counter(rows_of_draws[start : start + per_round].ravel().tolist())
            assert max(counts.values()) == -(-each // size)
