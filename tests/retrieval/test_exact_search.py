"""Exact search compared with a full sort."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluation.conftest import CORNERS, cut, exact, labelled_corners
from threadpoolctl import threadpool_info

from arcloop.errors import DataError
from arcloop.retrieval import exact_search
from arcloop.retrieval.embed import rebatch
from arcloop.retrieval.exact_search import (
    BlockShape,
    TopK,
    block_shape,
    exact_neighbours,
    scan_gallery,
)

sizes = st.lists(st.integers(1, 7), min_size=1, max_size=3)


def visited_blocks(queries, gallery, shape, then=None):
    """Every call of the visitor: (block, first row, cosines, labels)."""
    visits = []

    def visit(block, first_row, similarities, labels):
        visits.append((block, first_row, similarities.copy(), labels.copy()))

    scan_gallery(then or visit, queries, gallery, shape)
    return visits


@given(
    queries=labelled_corners(1, st.integers(1, 5)),
    gallery=labelled_corners(1, st.integers(1, 20)),
    chunks=sizes,
    rows=st.integers(1, 3),
    columns=st.integers(1, 9),
    k=st.integers(1, 25),
    data=st.data(),
)
def test_exact_neighbours_equals_a_full_sort(queries, gallery, chunks, rows, columns, k, data):
    (queries, _), (gallery, labels) = queries, gallery
    own = np.array([data.draw(st.integers(-1, len(gallery) - 1)) for _ in queries])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_search, "block_shape", lambda *_: BlockShape(2, rows, columns))
        similarities, found = exact_neighbours(
            queries, lambda: cut(gallery, labels, chunks), k, own
        )
    expected_similarities, expected = exact(gallery)(queries, len(gallery) + k)
    for query, itself in enumerate(own):
        others = (expected[query] != itself) | (expected[query] < 0)
        assert found[query].tolist() == expected[query][others][:k].tolist()
        assert similarities[query].tolist() == expected_similarities[query][others][:k].tolist()


def test_arrays_and_streams_have_the_same_neighbours():
    """The gallery is longer than the part of it that is read at a time."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((9000, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = rows[-70:]
    expected = exact_neighbours(queries, rows, 5)
    found = exact_neighbours(queries, lambda: cut(rows, np.arange(9000), [1100, 11]), 5)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    cosines = queries.astype(np.float64) @ rows.T.astype(np.float64)
    assert np.array_equal(expected[1], np.argsort(-cosines, axis=1)[:, :5])


def test_neighbours_of_many_rows_stay_within_the_memory():
    """A matrix of all similarities would take 400 MB."""
    import tracemalloc

    rows = np.eye(8, dtype=np.float32)[np.arange(10_000) % 8]
    tracemalloc.start()
    exact_neighbours(rows, rows, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 72 * 2**20


@pytest.mark.parametrize("order", ["random", "rising", "falling", "equal", "few values"])
@pytest.mark.parametrize("k", [1, 20, 700])
def test_top_k_of_many_rows_in_any_order(order, k):
    """Enough rows that later candidates are selected by the worst similarity kept so far."""
    random = np.random.default_rng(k)
    similarities = random.uniform(-1, 1, (3, 5000)).astype(np.float32)
    similarities = {
        "random": similarities,
        "rising": np.sort(similarities),
        "falling": -np.sort(similarities),
        "equal": np.full_like(similarities, 0.25),
        "few values": np.round(similarities, 1),
    }[order]
    top = TopK(3, k)
    for start in range(0, 5000, 1300):
        top.add(start, similarities[:, start : start + 1300].copy())
    expected = np.argsort(-similarities.astype(np.float64), axis=1, kind="stable")[:, :k]
    # Keys have steps of 2**-30: rows that differ by less are equal, and the lower comes first.
    steps = np.trunc(similarities.astype(np.float64) * 2**30)
    rows = top.result()[1]
    assert np.array_equal(rows, np.argsort(-steps, axis=1, kind="stable")[:, :k])
    assert np.array_equal(np.take_along_axis(similarities, rows, axis=1),
                          np.take_along_axis(similarities, expected, axis=1))  # fmt: skip


def test_similarities_that_differ_in_the_last_bit_are_ordered():
    value = np.float32(0.7)
    similarities = np.array([[value, np.nextafter(value, np.float32(1)), -value, 1e-7, 0]])
    top = TopK(1, 5)
    top.add(0, similarities.astype(np.float32))
    assert top.result()[1].tolist() == [[1, 0, 3, 4, 2]]


@given(
    gallery=labelled_corners(4, st.integers(1, 20)),
    chunks=sizes,
    queries=st.integers(1, 17),
    columns=st.integers(1, 9),
)
def test_every_block_visits_the_gallery_once_in_order(gallery, chunks, queries, columns):
    shape = BlockShape(16, queries, columns)
    visits = visited_blocks(CORNERS, lambda: cut(*gallery, chunks), shape)
    starts = sorted({part[0].start for part in visits})
    assert starts == list(range(0, 16, queries))
    for block in (slice(start, min(start + queries, 16)) for start in starts):
        own = [part for part in visits if part[0] == block]
        widths = [part[2].shape[1] for part in own]
        assert max(widths) <= columns
        assert [part[1] for part in own] == [0, *np.cumsum(widths)[:-1]]
        assert np.concatenate([part[3] for part in own]).tolist() == gallery[1].tolist()
        similarities = np.concatenate([part[2] for part in own], axis=1)
        assert np.array_equal(similarities, CORNERS[block] @ gallery[0].T)


@pytest.mark.parametrize(("batch", "expected"), [(16, 1), (6, 3)])
def test_the_gallery_is_read_once_for_each_batch(batch, expected):
    reads = []

    def gallery():
        reads.append(None)
        yield CORNERS, np.arange(16)

    visited_blocks(CORNERS, gallery, BlockShape(batch, 2, 4))
    assert len(reads) == expected


@given(stream=labelled_corners(4, st.integers(0, 30)), chunks=sizes, rows=st.integers(1, 9))
def test_rebatch_keeps_rows_and_order(stream, chunks, rows):
    batches = list(rebatch(cut(*stream, chunks), rows))
    lengths = [len(labels) for _, labels in batches]
    assert all(length == rows for length in lengths[:-1])
    assert all(0 < length <= rows for length in lengths)
    assert np.concatenate([b[1] for b in batches] or [[]]).tolist() == stream[1].tolist()
    embeddings = np.concatenate([b[0] for b in batches] or [stream[0]])
    assert np.array_equal(embeddings, stream[0])


def test_results_of_the_blocks_are_in_the_order_of_the_queries():
    shape = BlockShape(6, 2, 4)
    blocks = scan_gallery(lambda *_: None, CORNERS, lambda: [(CORNERS, np.arange(16))], shape, str)
    assert blocks == [str(slice(start, start + 2)) for start in range(0, 16, 2)]


def test_products_use_one_thread_only_within_a_scan():
    """Also after an error."""

    def blas_threads():
        # Other packages load BLAS libraries whose limit is local to a thread; numpy's computes.
        return [
            pool["num_threads"]
            for pool in threadpool_info()
            if pool["user_api"] == "blas" and "numpy" in pool["filepath"]
        ]

    before = blas_threads()
    seen = set()

    def fail(*_):
        seen.update(blas_threads())
        raise DataError("broken")

    threads = threading.active_count()
    with pytest.raises(DataError, match="broken"):
        visited_blocks(
            CORNERS, lambda: cut(CORNERS, np.arange(16), [5]), BlockShape(16, 2, 4), fail
        )
    assert seen == {1}
    assert blas_threads() == before
    assert threading.active_count() == threads


def test_a_gallery_may_be_a_read_only_memory_map(tmp_path):
    np.save(tmp_path / "embeddings.npy", CORNERS)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    shape = BlockShape(16, 16, 16)
    ((_, _, similarities, _),) = visited_blocks(mapped, lambda: [(mapped, np.arange(16))], shape)
    assert np.array_equal(similarities, CORNERS @ CORNERS.T)


@given(memory_mb=st.integers(1, 512), k=st.integers(0, 10_000), batch=st.integers(1, 9_000))
def test_block_sizes_stay_within_the_memory(memory_mb, k, batch):
    shape = block_shape(memory_mb, k, batch)
    assert min(shape) >= 1
    assert shape.queries <= shape.batch <= batch
    blocks_bytes = 8 * 4 * shape.queries * (shape.columns + 2 * k)
    neighbour_bytes = 8 * shape.batch * k
    assert blocks_bytes + neighbour_bytes <= memory_mb * 2**20 or shape.queries == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_reported(value):
    gallery = CORNERS.copy()
    gallery[13, 2] = value
    labels = np.zeros(16, np.int64)
    with pytest.raises(DataError, match="gallery row 13"):
        visited_blocks(CORNERS, lambda: cut(gallery, labels, [5]), BlockShape(16, 16, 3))
    with pytest.raises(DataError, match="queries"):
        visited_blocks(gallery[12:], lambda: cut(CORNERS, labels, [5]), BlockShape(16, 16, 3))
