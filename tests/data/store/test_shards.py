import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcloop.data.store.shards import SplitWriter, npy_header

SHAPE = (2, 3, 1)


def rows(start, stop):
    """Return images whose values are their row number, and labels that are its negative."""
    numbers = np.arange(start, stop)
    images = np.broadcast_to(numbers[:, None, None, None], (len(numbers), *SHAPE))
    return images.astype(np.uint8), -numbers


def files(start, stop):
    """Return a table whose paths have the length of their row number."""
    table = np.empty(stop - start, [("path", f"S{max(stop, 1)}"), ("size", "<i8")])
    table["path"] = [b"x" * row for row in range(start, stop)]
    table["size"] = np.arange(start, stop)
    return table


def read(folder, kind, shards):
    return [np.load(folder / f"{kind}-{number:05d}.npy") for number in range(shards)]


@pytest.mark.parametrize(
    ("total", "shards"), [(20, [6, 6, 6, 2]), (18, [6, 6, 6]), (6, [6]), (5, [5]), (0, [])]
)
@pytest.mark.parametrize("block", [1, 4, 6, 7, 20])
def test_blocks_of_any_size_are_written_to_shards_of_equal_size(tmp_path, total, shards, block):
    writer = SplitWriter(tmp_path / "train", 6, SHAPE, is_encoded=False)
    for start in range(0, total, block):
        stop = min(start + block, total)
        writer.append(*rows(start, stop), files(start, stop))
        writer.append(*rows(0, 0), files(0, 0))
    writer.close()
    assert writer.shards == shards
    assert len(list((tmp_path / "train").iterdir())) == 3 * len(shards)
    images, labels, origins = (
        read(tmp_path / "train", kind, len(shards)) for kind in ("images", "labels", "origins")
    )
    assert [len(shard) for shard in images] == [len(shard) for shard in origins] == shards
    assert all(shard.dtype == np.uint8 and shard.shape[1:] == SHAPE for shard in images)
    assert all(shard.dtype == np.int64 for shard in labels)
    if total:
        assert (np.concatenate(images) == rows(0, total)[0]).all()
        assert np.concatenate(labels).tolist() == [-row for row in range(total)]
        paths = [path for shard in origins for path in shard["path"].tolist()]
        assert paths == [b"x" * row for row in range(total)]


def test_groups_are_written_to_the_shards_of_their_rows(tmp_path):
    writer = SplitWriter(tmp_path / "train", 3, SHAPE, is_encoded=False)
    for start, stop in ((0, 2), (2, 5)):
        writer.append(*rows(start, stop), groups=np.arange(start, stop) - 1)
    writer.close()
    groups = read(tmp_path / "train", "groups", 2)
    assert [part.tolist() for part in groups] == [[-1, 0, 1], [2, 3]]
    assert all(part.dtype == np.int64 for part in groups)


def test_encoded_images_are_found_by_their_offsets(tmp_path):
    writer = SplitWriter(tmp_path / "train", 3, SHAPE, is_encoded=True, first_shard=7)
    writer.append([b"one", b"", b"three", b"four"], np.arange(4))
    writer.close()
    assert writer.shards == [3, 1]
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == [
        f"{kind}-{number:05d}.npy" for kind in ("jpeg", "labels", "offsets") for number in (7, 8)
    ]
    assert np.load(tmp_path / "train/jpeg-00007.npy").tobytes() == b"onethree"
    assert np.load(tmp_path / "train/offsets-00007.npy").tolist() == [0, 3, 3, 8]
    assert np.load(tmp_path / "train/offsets-00008.npy").tolist() == [0, 4]


@given(st.integers(0, 2**62), st.integers(1, 70_000))
def test_the_length_of_a_header_does_not_depend_on_the_number_of_rows(rows, side):
    assert len(npy_header((rows, side, side, 3), np.uint8)) == len(
        npy_header((0, side, side, 3), np.uint8)
    )
