import gzip

import numpy as np
import pytest
from tests.data.conftest import idx_source, write_idx, write_idx_set

from arcloop import artifacts
from arcloop.data import SPLITS, Store, prepare, store_key
from arcloop.data.sources.idx import read_blocks
from arcloop.errors import ConfigError, DataError

IMAGES = "train-images-idx3-ubyte"


@pytest.mark.parametrize("end", ["", ".gz"])
def test_store_holds_the_files_rows(tmp_path, end):
    made = write_idx_set(tmp_path / "idx", 60, 20, end=end)
    prepare(idx_source(tmp_path / "idx"), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.image_shape == (5, 3, 1)
    assert store.classes == ["0", "1", "2", "3"]
    assert [store.rows(split) for split in SPLITS] == [33, 12, 15, 20]

    images, labels = store.gather("query", np.arange(20))
    assert (images[..., 0] == made["t10k"][0]).all()
    assert (labels == made["t10k"][1]).all()

    # Each row of the training file is in one split, in the order of the file.
    position = {image.tobytes(): row for row, image in enumerate(made["train"][0])}
    seen = []
    for split in ("train", "val", "gallery"):
        images, labels = store.gather(split, np.arange(store.rows(split)))
        rows = [position[image.tobytes()] for image in images]
        assert rows == sorted(rows)
        assert (labels == made["train"][1][rows]).all()
        assert set(np.bincount(labels)) <= {store.rows(split) // 4, -(-store.rows(split) // 4)}
        seen += rows
    assert sorted(seen) == list(range(60))


def test_rows_beyond_one_block(tmp_path, monkeypatch):
    """The store does not depend on the size of the blocks that are read."""
    write_idx_set(tmp_path / "idx", 60, 20, end=".gz")
    prepare(idx_source(tmp_path / "idx"), tmp_path / "whole")
    monkeypatch.setattr("arcloop.data.store.shards._BLOCK_BYTES", 15 * 11)
    prepare(idx_source(tmp_path / "idx"), tmp_path / "blocks")
    assert artifacts.load(tmp_path / "whole", "store").files == (
        artifacts.load(tmp_path / "blocks", "store").files
    )


def test_labels_need_not_start_at_zero(tmp_path):
    made = write_idx_set(tmp_path / "idx", 60, 20, end="")
    for part in ("train", "t10k"):
        write_idx(tmp_path / f"idx/{part}-labels-idx1-ubyte", made[part][1] * 2 + 1)
    prepare(idx_source(tmp_path / "idx"), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.classes == ["1", "3", "5", "7"]
    assert (store.labels("query") == made["t10k"][1]).all()


def test_class_of_the_test_file_alone_is_kept(tmp_path):
    """Validation reports that it is not in train; prepare keeps it."""
    made = write_idx_set(tmp_path / "idx", 60, 20, end="")
    labels = made["t10k"][1].copy()
    labels[0] = 9
    write_idx(tmp_path / "idx/t10k-labels-idx1-ubyte", labels)
    prepare(idx_source(tmp_path / "idx"), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.classes == ["0", "1", "2", "3", "9"]
    assert store.labels("query")[0] == 4


def test_key_depends_on_content_not_on_location(tmp_path):
    write_idx_set(tmp_path / "one", 60, 20, end="")
    made = write_idx_set(tmp_path / "two", 60, 20, end="")
    key = store_key(idx_source(tmp_path / "one"))
    assert store_key(idx_source(tmp_path / "two")) == key
    assert store_key(idx_source(tmp_path / "two", split_seed=1)) != key
    images = made["train"][0].copy()
    images[59, 4, 2] ^= 1
    write_idx(tmp_path / "two" / IMAGES, images)
    assert store_key(idx_source(tmp_path / "two")) != key


def damage(path, how):
    content = path.read_bytes()
    path.write_bytes({
        "magic": b"\0\0\x0d\x03" + content[4:],
        "labels for images": b"\0\0\x08\x01" + content[4:],
        "zero bytes": b"",
        "header": content[:9],
        "short": content[:-1],
        "long": content + b"\0",
        "no rows": content[:4] + bytes(12),
    }[how])  # fmt: skip


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("magic", "wrong magic number 00000d03"),
        ("labels for images", "wrong magic number 00000801"),
        ("zero bytes", "empty file"),
        ("header", "ends in its header"),
        ("short", "ends in row 59 of the 60"),
        ("long", "continues after the 60 rows"),
        ("no rows", "empty: its header"),
    ],
)
def test_damaged_images_are_named(tmp_path, how, message):
    write_idx_set(tmp_path / "idx", 60, 20, end="")
    damage(tmp_path / "idx" / IMAGES, how)
    with pytest.raises(DataError, match=message) as caught:
        prepare(idx_source(tmp_path / "idx"), tmp_path / "store")
    assert caught.value.where == tmp_path / "idx" / IMAGES
    assert caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["idx"]


@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_truncated_gzip(tmp_path, keep):
    write_idx_set(tmp_path / "idx", 60, 20, end=".gz")
    file = tmp_path / "idx" / (IMAGES + ".gz")
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
    with pytest.raises(DataError, match="damaged gzip") as caught:
        prepare(idx_source(tmp_path / "idx"), tmp_path / "store")
    assert caught.value.where == file


def test_flipped_bit_in_gzip(tmp_path):
    write_idx_set(tmp_path / "idx", 60, 20, end="")
    plain = tmp_path / "idx" / IMAGES
    packed = bytearray(gzip.compress(plain.read_bytes(), compresslevel=0))
    packed[200] ^= 1
    plain.unlink()
    plain.with_name(IMAGES + ".gz").write_bytes(packed)
    with pytest.raises(DataError, match="damaged gzip file: CRC"):
        prepare(idx_source(tmp_path / "idx"), tmp_path / "store")


def test_file_that_is_not_gzip(tmp_path):
    write_idx_set(tmp_path / "idx", 60, 20, end="")
    plain = tmp_path / "idx" / IMAGES
    plain.rename(plain.with_name(IMAGES + ".gz"))
    with pytest.raises(DataError, match="damaged gzip file: Not a gzipped"):
        prepare(idx_source(tmp_path / "idx"), tmp_path / "store")


def test_lengths_differ(tmp_path):
    made = write_idx_set(tmp_path / "idx", 60, 20, end="")
    write_idx(tmp_path / "idx/t10k-labels-idx1-ubyte", made["t10k"][1][:19])
    with pytest.raises(DataError, match="20 test images but 19 labels"):
        prepare(idx_source(tmp_path / "idx"), tmp_path / "store")


def test_sizes_differ(tmp_path):
    made = write_idx_set(tmp_path / "idx", 60, 20, end="")
    write_idx(tmp_path / "idx/t10k-images-idx3-ubyte", made["t10k"][0][:, :4])
    with pytest.raises(DataError, match=r"\(5, 3\) pixels, test images \(4, 3\)"):
        prepare(idx_source(tmp_path / "idx"), tmp_path / "store")


def test_all_missing_files_are_named(tmp_path):
    write_idx_set(tmp_path / "idx", 60, 20, end="")
    for name in (IMAGES, "t10k-labels-idx1-ubyte"):
        (tmp_path / "idx" / name).unlink()
    with pytest.raises(DataError, match=r"missing: train-images.*\[.gz\], t10k-labels"):
        store_key(idx_source(tmp_path / "idx"))


def test_missing_root(tmp_path):
    with pytest.raises(DataError, match="no such folder") as caught:
        prepare(idx_source(tmp_path / "nowhere"), tmp_path / "store")
    assert caught.value.remedy == "correct data.root"


def test_wrong_settings_are_reported_together(tmp_path):
    with pytest.raises(
        ConfigError, match=r"(?s)data.shard_rows=0 .*data.val=1.5 .*data.split_seed=-1"
    ):
        idx_source(tmp_path, shard_rows=0, val=1.5, split_seed=-1)


def test_blocks_that_are_kept_do_not_change(tmp_path):
    labels = np.arange(20, dtype=np.uint8)
    write_idx(tmp_path / "labels", labels)
    blocks = list(read_blocks(tmp_path / "labels", 1, 7))
    assert [len(block) for block in blocks] == [7, 7, 6]
    assert np.concatenate(blocks).tolist() == labels.tolist()
