"""Blocks and selection against a sort of everything."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluation.conftest import CORNERS, cut, exact, labelled_corners

from arcloop.errors import DataError
from arcloop.retrieval.exact_search import (
    BlockShape,
    block_shape,
    blocks_of,
    compare,
    in_parallel,
    regroup,
)
from arcloop.retrieval.nearest import Nearest, at_least, keys_of

sizes = st.lists(st.integers(1, 7), min_size=1, max_size=3)


def seen_of(queries, gallery, shape):
    """What `compare` shows: (block, first row, cosines, labels) in the order of each block."""
    shown = []

    def see(block, first_row, similarities, labels):
        shown.append((block, first_row, similarities.copy(), labels.copy()))

    compare(see, queries, gallery, shape)
    return shown


@given(
    queries=labelled_corners(1, st.integers(1, 5)),
    gallery=labelled_corners(1, st.integers(1, 20)),
    chunks=sizes,
    rows=st.integers(1, 3),
    columns=st.integers(1, 9),
    k=st.integers(1, 20),
)
def test_nearest_are_those_of_a_full_sort(queries, gallery, chunks, rows, columns, k):
    k = min(k, len(gallery[1]))
    shape = BlockShape(len(queries[1]), rows, columns)
    expected, order = exact(gallery[0])(queries[0], k)
    nearest = {b.start: Nearest(b.stop - b.start, k) for b in blocks_of(len(queries[1]), shape)}

    def see(block, first_row, similarities, labels):
        nearest[block.start].add(first_row, similarities)

    compare(see, queries[0], lambda: cut(*gallery, chunks), shape)
    found = list(nearest.values())
    assert np.concatenate([part.rows() for part in found]).tolist() == order.tolist()
    assert np.concatenate([p.similarities() for p in found]).tolist() == expected.tolist()


@pytest.mark.parametrize("order", ["random", "rising", "falling", "equal", "few values"])
@pytest.mark.parametrize("k", [1, 20, 700])
def test_nearest_of_many_rows_in_any_order(order, k):
    """Rows enough that candidates are picked by what is among the best so far, and none is lost."""
    random = np.random.default_rng(k)
    similarities = random.uniform(-1, 1, (3, 5000)).astype(np.float32)
    similarities = {
        "random": similarities,
        "rising": np.sort(similarities),
        "falling": -np.sort(similarities),
        "equal": np.full_like(similarities, 0.25),
        "few values": np.round(similarities, 1),
    }[order]
    nearest = Nearest(3, k)
    for start in range(0, 5000, 1300):
        nearest.add(start, similarities[:, start : start + 1300].copy())
    expected = np.argsort(-similarities.astype(np.float64), axis=1, kind="stable")[:, :k]
    # Keys have steps of 2**-30: what is nearer than that is equal, and the lower row comes first.
    steps = np.trunc(similarities.astype(np.float64) * 2**30)
    assert np.array_equal(nearest.rows(), np.argsort(-steps, axis=1, kind="stable")[:, :k])
    assert np.array_equal(np.take_along_axis(similarities, nearest.rows(), axis=1),
                          np.take_along_axis(similarities, expected, axis=1))  # fmt: skip


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30), st.integers(0, 29))
def test_at_least_finds_all_that_rank_no_later(values, which):
    similarities = np.array([values], np.float32)
    keys = keys_of(similarities, np.arange(len(values)))
    limit = keys[:, which % len(values)]
    queries, columns = at_least(similarities, limit)
    assert set(np.flatnonzero(keys[0] <= limit)) <= set(columns.tolist())
    assert not queries.any()


def test_similarities_that_differ_in_the_last_bit_are_told_apart():
    value = np.float32(0.7)
    similarities = np.array([[value, np.nextafter(value, np.float32(1)), -value, 1e-7, 0]])
    nearest = Nearest(1, 5)
    nearest.add(0, similarities.astype(np.float32))
    assert nearest.rows().tolist() == [[1, 0, 3, 4, 2]]


@given(
    gallery=labelled_corners(4, st.integers(1, 20)),
    chunks=sizes,
    queries=st.integers(1, 17),
    columns=st.integers(1, 9),
)
def test_blocks_see_the_gallery_once_in_order(gallery, chunks, queries, columns):
    shape = BlockShape(16, queries, columns)
    shown = seen_of(CORNERS, lambda: cut(*gallery, chunks), shape)
    for block in blocks_of(16, shape):
        own = [part for part in shown if part[0] == block]
        widths = [part[2].shape[1] for part in own]
        assert max(widths) <= columns
        assert [part[1] for part in own] == [0, *np.cumsum(widths)[:-1]]
        assert np.concatenate([part[3] for part in own]).tolist() == gallery[1].tolist()
        similarities = np.concatenate([part[2] for part in own], axis=1)
        assert np.array_equal(similarities, CORNERS[block] @ gallery[0].T)


def test_the_gallery_is_read_once_for_all_queries():
    reads = []

    def gallery():
        reads.append(None)
        yield CORNERS, np.arange(16)

    seen_of(CORNERS, gallery, BlockShape(16, 2, 4))
    assert len(reads) == 1


@given(stream=labelled_corners(4, st.integers(0, 30)), chunks=sizes, rows=st.integers(1, 9))
def test_regrouped_batches_hold_the_same_rows(stream, chunks, rows):
    batches = list(regroup(cut(*stream, chunks), rows))
    lengths = [len(labels) for _, labels in batches]
    assert all(length == rows for length in lengths[:-1])
    assert all(0 < length <= rows for length in lengths)
    assert np.concatenate([b[1] for b in batches] or [[]]).tolist() == stream[1].tolist()
    embeddings = np.concatenate([b[0] for b in batches] or [stream[0]])
    assert np.array_equal(embeddings, stream[0])


def test_results_come_back_in_order():
    assert in_parallel(lambda number: number**2, range(100)) == [n**2 for n in range(100)]


def test_threads_stay_from_batch_to_batch():
    """What MKL keeps for a thread is lost when the thread ends, and grows with their number."""
    before = set(threading.enumerate())
    seen = set()
    for _ in range(20):
        seen |= set(in_parallel(lambda _: threading.current_thread(), range(6)))
    assert len(seen - before) <= torch.get_num_threads()


def test_cores_are_given_back_though_the_work_fails():
    threads = torch.get_num_threads()

    def fail(number):
        assert torch.get_num_threads() == 1
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        in_parallel(fail, range(6))
    assert torch.get_num_threads() == threads


def test_a_gallery_may_be_mapped_read_only(tmp_path):
    np.save(tmp_path / "embeddings.npy", CORNERS)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    shape = BlockShape(16, 16, 16)
    ((_, _, similarities, _),) = seen_of(mapped, lambda: [(mapped, np.arange(16))], shape)
    assert np.array_equal(similarities, CORNERS @ CORNERS.T)


@given(memory_mb=st.integers(1, 512), k=st.integers(0, 10_000), batch=st.integers(1, 9_000))
def test_blocks_stay_within_the_memory(memory_mb, k, batch):
    shape = block_shape(memory_mb, k, batch)
    assert min(shape) >= 1
    assert shape.queries <= shape.together <= batch
    blocks_bytes = 8 * 4 * shape.queries * (shape.columns + 2 * k)
    kept_bytes = 8 * shape.together * k
    assert blocks_bytes + kept_bytes <= memory_mb * 2**20 or shape.queries == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_named(value):
    gallery = CORNERS.copy()
    gallery[13, 2] = value
    labels = np.zeros(16, np.int64)
    with pytest.raises(DataError, match="gallery row 13"):
        seen_of(CORNERS, lambda: cut(gallery, labels, [5]), BlockShape(16, 16, 3))
    with pytest.raises(DataError, match="queries"):
        seen_of(gallery[12:], lambda: cut(CORNERS, labels, [5]), BlockShape(16, 16, 3))
