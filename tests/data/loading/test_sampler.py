from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcloop.data.loading import sampler
from arcloop.data.loading.sampler import OrderedBatches, ShuffledBatches
from arcloop.distributed.process_group import ProcessGroup
from arcloop.errors import DataError


def at(monkeypatch, rank, world_size):
    monkeypatch.setattr(sampler, "current_process_group", lambda: ProcessGroup(rank, world_size))


def shuffled(*, rows, batch_size, seed, world_size=1):
    labels = np.zeros(rows, np.int64)
    return ShuffledBatches(labels_N=labels, batch_size=batch_size, world_size=world_size, seed=seed)


def epoch(batches, number=0):
    batches.set_epoch(number)
    return [rows.tolist() for rows in batches]


def test_rows_are_not_repeated_and_the_last_batch_is_dropped():
    batches = epoch(shuffled(rows=103, batch_size=10, seed=0))
    assert [len(rows) for rows in batches] == [10] * 10
    rows = list(chain(*batches))
    assert len(set(rows)) == 100
    assert set(rows) <= set(range(103))


def test_order_is_a_function_of_seed_and_epoch():
    one, same, other = (shuffled(rows=200, batch_size=10, seed=s) for s in (5, 5, 6))
    assert epoch(one, 3) == epoch(same, 3)
    assert epoch(one, 3) == epoch(one, 3)
    assert epoch(one, 3) != epoch(one, 4)
    assert epoch(one, 3) != epoch(other, 3)
    # Nor may it depend on the sum of both only.
    assert epoch(one, 1) != epoch(other, 0)


@given(st.integers(2, 300), st.integers(0, 99), st.integers(0, 9))
def test_order_equals_numpy_permutation(rows, seed, number):
    """Also with the smaller integer type."""
    found = list(chain(*epoch(shuffled(rows=rows, batch_size=rows, seed=seed), number)))
    assert found == sorted(np.random.default_rng([seed, number]).permutation(rows))
    drawn = shuffled(rows=rows, batch_size=rows, seed=seed)
    order = drawn.order(np.random.default_rng([seed, number]))
    assert order.tolist() == np.random.default_rng([seed, number]).permutation(rows).tolist()


def test_rows_are_spread_over_the_epoch():
    first, *_ = epoch(shuffled(rows=10_000, batch_size=1000, seed=0))
    assert 4700 < np.mean(first) < 5300
    assert first == sorted(first)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_divide_the_global_batches_of_one(monkeypatch, world_size):
    alone = epoch(shuffled(rows=103, batch_size=8, seed=0), 2)
    parts = []
    for rank in range(world_size):
        at(monkeypatch, rank, world_size)
        batches = shuffled(rows=103, batch_size=8 // world_size, seed=0, world_size=world_size)
        assert len(batches) == len(alone)
        parts.append(epoch(batches, 2))
    assert [sorted(chain(*of_all)) for of_all in zip(*parts, strict=True)] == alone


def test_epoch_can_start_at_any_batch():
    batches = shuffled(rows=100, batch_size=10, seed=0)
    whole = epoch(batches, 1)
    batches.first_batch = 7
    assert len(batches) == 10
    assert epoch(batches, 1) == whole[7:]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_split_smaller_than_a_batch_is_one_batch(monkeypatch, world_size):
    seen = []
    for rank in range(world_size):
        at(monkeypatch, rank, world_size)
        (batch,) = shuffled(rows=9, batch_size=10, seed=0, world_size=world_size)
        seen += batch.tolist()
    assert len(seen) == len(set(seen)) == 9 // world_size * world_size


@pytest.mark.parametrize("world_size", [1, 2])
def test_too_few_images_for_a_batch_norm_are_refused(monkeypatch, world_size):
    at(monkeypatch, 0, world_size)
    with pytest.raises(DataError, match="too few"):
        shuffled(rows=2 * world_size - 1, batch_size=10, seed=0, world_size=world_size)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
def test_ordered_batches_cover_each_row_once(rows, batch_size, world_size):
    with pytest.MonkeyPatch.context() as monkeypatch:
        seen = []
        for rank in range(world_size):
            at(monkeypatch, rank, world_size)
            batches = OrderedBatches(rows=rows, batch_size=batch_size)
            part = [batch.tolist() for batch in batches]
            assert len(part) == len(batches)
            assert all(len(batch) == batch_size for batch in part[:-1])
            seen += chain(*part)
    assert seen == list(range(rows))


def test_few_rows_are_divided_so_that_every_process_has_some(monkeypatch):
    for rank in range(3):
        at(monkeypatch, rank, 3)
        assert list(OrderedBatches(rows=29, batch_size=10))
