import numpy as np
import pytest

from arcloop.evaluation.sample import Sample


def fill(capacity, chunk, total=1000):
    sample = Sample(capacity, 2)
    rows = np.arange(total)
    for start in range(0, total, chunk):
        part = rows[start : start + chunk]
        sample.add(np.stack([part, -part], axis=1).astype(np.float32), part % 7)
    return sample


@pytest.mark.parametrize("chunk", [1, 7, 333, 1000])
def test_the_sample_does_not_depend_on_the_chunks(chunk):
    sample, whole = fill(50, chunk), fill(50, 1000)
    assert sample.rows.tolist() == whole.rows.tolist()
    assert len(sample.rows) == 50


def test_embeddings_and_labels_belong_to_the_rows():
    sample = fill(50, 64)
    assert np.all(np.diff(sample.rows) > 0)
    assert np.array_equal(sample.embeddings[:, 0], sample.rows)
    assert np.array_equal(sample.embeddings[:, 1], -sample.rows)
    assert np.array_equal(sample.labels, sample.rows % 7)


def test_a_short_stream_is_kept_whole():
    assert fill(50, 10, total=30).rows.tolist() == list(range(30))


def test_nothing_is_kept_without_room():
    assert len(fill(0, 10).rows) == 0


def test_every_part_of_the_stream_is_as_likely():
    rows = fill(2000, 1000, total=10_000).rows
    tenths = np.bincount(rows // 1000, minlength=10)
    assert np.all(abs(tenths - 200) < 5 * np.sqrt(200 * 0.9))
