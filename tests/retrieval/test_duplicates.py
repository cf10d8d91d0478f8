"""Equal gallery rows rank by row number, although their float32 products differ in the last bit."""

from fractions import Fraction

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from tests.evaluation.conftest import cut

from arcloop.evaluation import evaluate_retrieval
from arcloop.retrieval import exact_search
from arcloop.retrieval.duplicates import find_equal_rows, rounded
from arcloop.retrieval.exact_search import BlockShape, exact_neighbours
from arcloop.runtime.equal_rows import EqualRows
from arcloop.runtime.searcher import search


def unit_rows(seed, rows, dim):
    rows_ND = np.random.default_rng(seed).standard_normal((rows, dim))
    return (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)).astype(np.float32)


@st.composite
def galleries_with_copies(draw):
    """Few different rows, so that most of them occur several times; queries may be copies too."""
    seed, dim = draw(st.integers(0, 10**6)), draw(st.sampled_from([3, 64, 100, 130]))
    different = unit_rows(seed, draw(st.integers(1, 8)), dim)
    picks = draw(st.lists(st.integers(0, len(different) - 1), min_size=1, max_size=60))
    queries = np.concatenate([different, unit_rows(seed + 1, 3, dim)])
    return queries, different, np.array(picks)


def ranking(queries, different, picks):
    """Gallery rows by descending cosine of the different rows in float64, then by row number."""
    cosines = queries.astype(np.float64) @ different.astype(np.float64).T
    gaps = np.diff(np.sort(cosines, axis=1), axis=1)
    keys = -np.take(cosines, picks, axis=1)
    return np.argsort(keys, axis=1, kind="stable"), gaps.min(initial=1) > 1e-6


@effort(max_examples=80)
@given(
    drawn=galleries_with_copies(),
    chunks=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    shape=st.tuples(st.integers(1, 11), st.integers(1, 70)),
    k=st.integers(1, 60),
    threads=st.integers(1, 8),
)
def test_equal_rows_rank_by_row_number_in_any_blocks(drawn, chunks, shape, k, threads):
    queries, different, picks = drawn
    expected, clear = ranking(*drawn)
    gallery, k = different[picks], min(k, len(picks))
    if not clear:  # two different rows are equally similar up to the rounding
        return
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_search, "block_shape", lambda *_: BlockShape(11, *shape))
        torch.set_num_threads(threads)
        try:
            _, rows = exact_neighbours(queries, lambda: cut(gallery, picks, chunks), k)
        finally:
            torch.set_num_threads(before)
    assert np.array_equal(rows, expected[:, :k])


@pytest.mark.parametrize("dim", [64, 128, 512])
@pytest.mark.parametrize("rows", [2, 5, 17, 1030])
def test_the_products_of_equal_rows_are_equal_in_every_column(rows, dim):
    """Matrix products compute the last columns of a block by another kernel."""
    queries, row = unit_rows(1, 41, dim), unit_rows(2, 1, dim)
    gallery = np.repeat(row, rows, axis=0)
    similarities, found = exact_neighbours(queries, gallery, rows)
    assert np.array_equal(found, np.tile(np.arange(rows), (41, 1)))
    assert (similarities == similarities[:, :1]).all()


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 4), st.integers(1, 200))
def test_exact_products_do_not_depend_on_the_shape_or_order(seed, queries, rows, dim):
    one, other = unit_rows(seed, queries, dim), unit_rows(seed + 1, rows, dim)
    products = rounded(one) @ rounded(other).T
    order = np.random.default_rng(seed).permutation(dim)
    assert np.array_equal(products, rounded(one[:, order]) @ rounded(other[:, order]).T)
    for query, row in np.ndindex(queries, rows):
        exact = sum(map(Fraction, (rounded(one[query]) * rounded(other[row])).tolist()))
        assert Fraction(products[query, row]) == exact
    assert np.abs(products - one.astype(np.float64) @ other.astype(np.float64).T).max() < 1e-7


@given(st.lists(st.integers(0, 6), max_size=30), st.lists(st.integers(1, 9), min_size=1))
def test_equal_rows_are_found_in_any_chunks(picks, chunks):
    """Also rows whose bits have the same exclusive or, and zeros of both signs."""
    different = np.array(
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0], [0.8, 0.6, 0], [-0.0, 1, 0],
         [0.6, 0, 0.8]], np.float32,
    )  # fmt: skip
    gallery = different[np.array(picks, int)]
    groups = {}
    for row, values in enumerate(gallery.tolist()):
        groups.setdefault(tuple(values), []).append(row)
    expected = sorted(group for group in groups.values() if len(group) > 1)
    found = find_equal_rows(lambda: cut(gallery, np.zeros(len(picks)), chunks))
    assert found.groups() == expected
    assert found.rows.tolist() == sorted(row for group in expected for row in group)


@given(st.data())
def test_an_index_returns_the_lowest_of_equal_rows(data):
    """By definition: each found row is replaced by the next row of its group."""
    names = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=12))
    groups = [[row for row, name in enumerate(names) if name == n] for n in sorted(set(names))]
    of_row = {row: group for group in groups for row in group}
    several = sorted(group for group in groups if len(group) > 1)
    order = data.draw(st.permutations(range(len(names))))
    found = [*order[: data.draw(st.integers(1, len(names)))], -1]
    expected, used = [], {}
    for row in found:
        number = used.setdefault(min(of_row.get(row, [row])), 0)
        expected.append(of_row[row][number] if row >= 0 else -1)
        used[min(of_row.get(row, [row]))] += 1
    equal = EqualRows.from_groups(several)
    assert equal.groups() == several
    assert equal.prefer_lowest(np.array([found, found])).tolist() == [expected, expected]


def test_each_row_of_a_large_group_is_read_a_few_times_only():
    reads = 0

    class Group(list):
        def __iter__(self):
            nonlocal reads
            for row in super().__iter__():
                reads += 1
                yield row

    equal = EqualRows.from_groups([Group(range(100))])
    assert reads <= 300
    assert equal.lowest.tolist() == [0] * 100


def test_recall_of_copies_of_other_classes_is_that_of_the_lower_row():
    """Each row occurs twice, of the query's class first: every answer is right."""
    rows = unit_rows(0, 300, 64)
    gallery = (
        np.concatenate([rows, rows[:293]]),
        np.concatenate([np.arange(300), np.full(293, 999)]),
    )
    assert evaluate_retrieval((rows, np.arange(300)), gallery)["recall_at_1"] == 1
    swapped = gallery[0], np.concatenate([np.full(300, 999), np.arange(293)])
    assert evaluate_retrieval((rows[:293], np.arange(293)), swapped)["recall_at_1"] == 0


def test_answers_of_faiss_are_those_of_the_exact_search():
    rows = unit_rows(0, 40, 64)
    gallery = rows[np.random.default_rng(1).integers(0, 40, 501)]
    index = faiss.IndexFlatIP(64)
    index.add(gallery)
    equal = find_equal_rows(lambda: [(gallery, np.zeros(501))])
    _, found = search(index, rows, 3)
    assert np.array_equal(equal.prefer_lowest(found), exact_neighbours(rows, gallery, 3)[1])
