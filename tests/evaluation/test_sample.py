import numpy as np
import pytest

from arcloop.evaluation.evaluator import Sample, sampled_rows


def fill(chosen, chunk, total=1000, first=0):
    sample = Sample(chosen, 2)
    rows = np.arange(first, total)
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        sample.update(first + start, np.stack([part, -part], axis=1).astype(np.float32), part % 7)
    return sample


def test_rows_are_distinct_ascending_and_limited():
    rows = sampled_rows(1000, 50)
    assert len(rows) == 50
    assert np.all(np.diff(rows) > 0)
    assert sampled_rows(30, 50).tolist() == list(range(30))
    assert len(sampled_rows(30, 0)) == 0


def test_a_smaller_sample_is_part_of_a_larger_one():
    assert set(sampled_rows(1000, 50)) < set(sampled_rows(1000, 300))


def test_every_part_of_the_split_is_equally_likely():
    tenths = np.bincount(sampled_rows(10_000, 2000) // 1000, minlength=10)
    assert np.all(abs(tenths - 200) < 5 * np.sqrt(200 * 0.9))


@pytest.mark.parametrize("chunk", [1, 7, 333, 1000])
def test_embeddings_and_labels_belong_to_the_rows(chunk):
    chosen = sampled_rows(1000, 50)
    sample = fill(chosen, chunk)
    assert sample.rows.tolist() == chosen.tolist()
    assert np.array_equal(sample.embeddings[:, 0], chosen)
    assert np.array_equal(sample.embeddings[:, 1], -chosen)
    assert np.array_equal(sample.labels, chosen % 7)


def test_merged_parts_equal_the_sample_of_the_split():
    chosen = sampled_rows(1000, 50)
    parts = [fill(chosen, 7, total=400), fill(chosen, 9, first=400), fill(chosen, 9, first=1000)]
    joined, whole = parts[0], fill(chosen, 1000)
    for part in parts[1:]:
        joined.merge(part)
    assert joined.rows.tolist() == whole.rows.tolist()
    assert np.array_equal(joined.embeddings, whole.embeddings)
    assert np.array_equal(joined.labels, whole.labels)


def test_an_empty_sample_has_the_embedding_dimension():
    assert fill(np.empty(0, np.int64), 10).embeddings.shape == (0, 2)
