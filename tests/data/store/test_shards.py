import itertools
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcloop.data.store.shards import SplitWriter, allocate_npy, slice_shards

SHAPE = (2, 3, 1)


def rows(start, stop):
    """Return images whose values are their row number, and labels that are its negative."""
    numbers = np.arange(start, stop)
    images = np.broadcast_to(numbers[:, None, None, None], (len(numbers), *SHAPE))
    return images.astype(np.uint8), -numbers


def read(folder, shards):
    images = [np.load(folder / f"images-{number:05d}.npy") for number in range(shards)]
    labels = [np.load(folder / f"labels-{number:05d}.npy") for number in range(shards)]
    return images, labels


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 15))
def test_pieces_cover_each_row_once(start, length, shard_rows):
    stop = start + length
    cut = list(slice_shards(start, stop, np.array([shard_rows, 2 * shard_rows, 200])))
    in_split = [
        shard * shard_rows + row
        for shard, source, _ in cut
        for row in range(source.start, source.stop)
    ]
    assert in_split == list(range(start, stop))
    asked = [row for _, _, target in cut for row in range(target.start, target.stop)]
    assert asked == list(range(length))
    sizes = [shard_rows, shard_rows, 200]
    assert all(0 <= source.start < source.stop <= sizes[shard] for shard, source, _ in cut)


@pytest.mark.parametrize(
    ("total", "shards"), [(20, [6, 6, 6, 2]), (18, [6, 6, 6]), (6, [6]), (5, [5])]
)
def test_rows_can_be_written_in_any_order(tmp_path, total, shards):
    writer = SplitWriter(tmp_path / "train", total, 6, SHAPE).allocate()
    assert writer.shards == shards
    cuts = [0, 1, 4, 4, total]
    for start, stop in reversed(list(itertools.pairwise(cuts))):
        writer.write(start, *rows(start, stop))
    images, labels = read(writer.folder, len(shards))
    assert [len(shard) for shard in images] == shards
    assert images[0].dtype == np.uint8
    assert labels[0].dtype == np.int64
    assert (np.concatenate(images) == rows(0, total)[0]).all()
    assert np.concatenate(labels).tolist() == [-row for row in range(total)]
    assert not (tmp_path / "train" / f"images-{len(shards):05d}.npy").exists()


@pytest.mark.parametrize("portable", [False, True])
def test_allocated_file_is_an_array_of_zeros(tmp_path, monkeypatch, portable):
    """Also where the operating system has no posix_fallocate, as on macOS."""
    if portable:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        monkeypatch.setattr("arcloop.data.store.shards._BLOCK_BYTES", 1000)
    allocate_npy(tmp_path / "rows.npy", (41, 3, 5), np.int64)
    found = np.load(tmp_path / "rows.npy")
    assert (found.shape, found.dtype) == ((41, 3, 5), np.int64)
    assert not found.any()


@pytest.mark.parametrize("dropped", [[0], [5, 6, 7, 19], list(range(1, 20)), []])
def test_finish_removes_dropped_rows(tmp_path, monkeypatch, dropped):
    monkeypatch.setattr("arcloop.data.store.shards._BLOCK_BYTES", 7 * 6)
    writer = SplitWriter(tmp_path / "train", 20, 6, SHAPE).allocate()
    writer.write(0, *rows(0, 20))
    kept = writer.finish(dropped)
    left = [row for row in range(20) if row not in dropped]
    images, labels = read(kept.folder, len(kept.shards))
    assert np.concatenate(images)[:, 0, 0, 0].tolist() == left
    assert np.concatenate(labels).tolist() == [-row for row in left]
    assert kept.rows == len(left)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train"]
    assert len(list(kept.folder.iterdir())) == 2 * len(kept.shards)
