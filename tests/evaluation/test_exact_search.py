"""Blocks and selection against a sort of everything."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluation.conftest import CORNERS, cut, exact, labelled_corners

from arcloop.errors import DataError
from arcloop.evaluation.exact_search import (
    Nearest,
    block_shape,
    map_blocks,
    regroup,
    similarity_blocks,
)

sizes = st.lists(st.integers(1, 7), min_size=1, max_size=3)


@given(
    queries=labelled_corners(1, st.integers(1, 5)),
    gallery=labelled_corners(1, st.integers(1, 20)),
    chunks=sizes,
    columns=st.integers(1, 9),
    k=st.integers(1, 20),
)
def test_nearest_are_those_of_a_full_sort(queries, gallery, chunks, columns, k):
    k = min(k, len(gallery[1]))
    nearest = Nearest(len(queries[0]), k, columns)
    for first, similarities, _ in similarity_blocks(
        queries[0], lambda: cut(*gallery, chunks), columns
    ):
        nearest.add(first, similarities)
    similarities, rows = exact(gallery[0])(queries[0], k)
    assert nearest.rows().tolist() == rows.tolist()
    assert nearest.similarities().tolist() == similarities.tolist()


def test_similarities_that_differ_in_the_last_bit_are_told_apart():
    value = np.float32(0.7)
    similarities = np.array([[value, np.nextafter(value, np.float32(1)), -value, 1e-7, 0]])
    nearest = Nearest(1, 5, columns=5)
    nearest.add(0, similarities.astype(np.float32))
    assert nearest.rows().tolist() == [[1, 0, 3, 4, 2]]


@given(gallery=labelled_corners(4, st.integers(1, 20)), chunks=sizes, columns=st.integers(1, 9))
def test_blocks_cover_the_gallery_once_in_order(gallery, chunks, columns):
    rows, labels, similarities = [], [], []
    for first, block, block_labels in similarity_blocks(
        CORNERS, lambda: cut(*gallery, chunks), columns
    ):
        assert block.shape[1] <= columns
        rows.append(first)
        labels.append(block_labels.copy())
        similarities.append(block.copy())
    widths = [len(part) for part in labels]
    assert rows == [0, *np.cumsum(widths)[:-1]]
    assert np.concatenate(labels).tolist() == gallery[1].tolist()
    assert np.array_equal(np.concatenate(similarities, axis=1), CORNERS @ gallery[0].T)


@given(stream=labelled_corners(4, st.integers(0, 30)), chunks=sizes, rows=st.integers(1, 9))
def test_regrouped_batches_hold_the_same_rows(stream, chunks, rows):
    batches = list(regroup(cut(*stream, chunks), rows))
    lengths = [len(labels) for _, labels in batches]
    assert all(length == rows for length in lengths[:-1])
    assert all(0 < length <= rows for length in lengths)
    assert np.concatenate([b[1] for b in batches] or [[]]).tolist() == stream[1].tolist()
    embeddings = np.concatenate([b[0] for b in batches] or [stream[0]])
    assert np.array_equal(embeddings, stream[0])


@given(stream=labelled_corners(4, st.integers(0, 30)), rows=st.integers(1, 9))
def test_work_on_blocks_comes_back_in_their_order(stream, rows):
    parts = list(map_blocks(lambda *block: block, *stream, rows, np.arange(len(stream[1]))))
    assert [len(labels) for _, labels, _ in parts[:-1]] == [rows] * (len(parts) - 1)
    assert [place for part in parts for place in part[2]] == list(range(len(stream[1])))
    assert np.array_equal(np.concatenate([part[0] for part in parts] or [stream[0]]), stream[0])
    assert np.concatenate([part[1] for part in parts] or [[]]).tolist() == stream[1].tolist()


def test_threads_stay_from_batch_to_batch():
    """What MKL keeps for a thread is lost when the thread ends, and grows with their number."""
    before = set(threading.enumerate())
    seen = set()
    for _ in range(20):
        seen |= set(map_blocks(lambda *_: threading.current_thread(), CORNERS, np.arange(16), 3))
    assert len(seen - before) <= torch.get_num_threads()


def test_cores_are_given_back_though_the_work_fails():
    threads = torch.get_num_threads()

    def fail(embeddings, labels):
        assert torch.get_num_threads() == 1
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        list(map_blocks(fail, CORNERS, np.arange(16), 3))
    assert torch.get_num_threads() == threads


def test_a_gallery_may_be_mapped_read_only(tmp_path):
    np.save(tmp_path / "embeddings.npy", CORNERS)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    ((_, similarities, _),) = similarity_blocks(mapped, lambda: [(mapped, np.arange(16))], 16)
    assert np.array_equal(similarities, CORNERS @ CORNERS.T)


@given(memory_mb=st.integers(1, 512), k=st.integers(0, 10_000))
def test_blocks_stay_within_the_memory(memory_mb, k):
    queries, columns = block_shape(memory_mb, k)
    assert queries >= 1
    assert columns >= 1
    keys_bytes = 8 * queries * (columns + k)
    assert keys_bytes <= memory_mb * 2**20 or queries == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_named(value):
    gallery = CORNERS.copy()
    gallery[13, 2] = value
    labels = np.zeros(16, np.int64)
    with pytest.raises(DataError, match="gallery row 13"):
        list(similarity_blocks(CORNERS, lambda: cut(gallery, labels, [5]), 3))
    with pytest.raises(DataError, match="queries"):
        list(similarity_blocks(gallery[12:], lambda: cut(CORNERS, labels, [5]), 3))
