"""Stores whose images are stored as JPEG."""

import io
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from tests.data.conftest import folder_source, peaks_of_memory, synthetic_source

from arcloop.artifacts.writer import write_manifest
from arcloop.config.schema import LoaderSettings
from arcloop.data import SPLITS, Store, prepare, store_key, validate
from arcloop.data.loading.datamodule import BatchDataset, BatchLoader
from arcloop.data.loading.sampler import OrderedBatches
from arcloop.errors import ArtifactError, ConfigError, DataError

JPEG = {"encoding": "jpeg", "jpeg_quality": 90}


def through_jpeg(image, quality=90):
    """Encode and decode an image [H, W, C] with PIL."""
    grey = image.shape[-1] == 1
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if grey else image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file)).reshape(image.shape)


@pytest.fixture(scope="module", params=[1, 3])
def whole(request):
    """Return images [N, H, W, C] after JPEG compression and labels [N], by split."""
    listing = synthetic_source(channels=request.param, image_size=[9, 13]).open()
    made = {split: listing.generate(split, 0, listing.rows[split]) for split in SPLITS}
    return {
        split: (np.stack([through_jpeg(image) for image in images]), labels)
        for split, (images, labels) in made.items()
    }


@pytest.fixture(scope="module")
def store(whole, tmp_path_factory):
    """50 rows of train in shards of 16."""
    channels = whole["train"][0].shape[-1]
    path = tmp_path_factory.mktemp("jpeg") / "store"
    prepare(synthetic_source(channels=channels, image_size=[9, 13], **JPEG), path)
    return Store.open(path)


def test_layout(store):
    names = [
        f"{kind}-{number:05d}.npy" for kind in ("jpeg", "labels", "offsets") for number in range(4)
    ]
    train = store.artifact.path / "train"
    assert sorted(file.name for file in train.iterdir()) == names
    assert sorted(p.name for p in store.artifact.path.iterdir() if p.is_dir()) == sorted(SPLITS)
    encoded, offsets = np.load(train / "jpeg-00003.npy"), np.load(train / "offsets-00003.npy")
    assert (encoded.dtype, encoded.ndim) == (np.uint8, 1)
    assert (offsets.dtype, offsets.shape) == (np.int64, (3,))
    assert (offsets[0], offsets[-1]) == (0, len(encoded))
    assert Image.open(io.BytesIO(encoded[offsets[1] :].tobytes())).format == "JPEG"
    assert store.artifact.info["encoding"] == "jpeg"


@pytest.mark.parametrize("batch_rows", [1, 7, 16, 40, 1000])
def test_batches_return_the_split_in_order(store, whole, batch_rows):
    for split in ("train", "query"):
        batches = list(store.batches(split, batch_rows))
        assert (np.concatenate([images for images, _ in batches]) == whole[split][0]).all()
        assert (np.concatenate([labels for _, labels in batches]) == whole[split][1]).all()


@given(rows=st.lists(st.integers(0, 49), max_size=70), cores=st.integers(1, 4))
@hypothesis_settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_gather_returns_rows_in_the_requested_order(store, whole, rows, cores):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("joblib.cpu_count", lambda: cores)
        images, labels = store.gather("train", np.array(rows, np.int64))
    assert (images == whole["train"][0][rows]).all()
    assert (labels == whole["train"][1][rows]).all()


def test_loader_workers_decode_the_same_images(store):
    def batches(workers):
        settings = LoaderSettings(
            batch_size=8, eval_batch_size=8, num_workers=workers, prefetch_factor=2, on_device=False
        )
        rows = OrderedBatches(rows=store.rows("val"), batch_size=8)
        loader = BatchLoader(BatchDataset(store, "val"), rows, settings)
        return [images.numpy() for images, _ in loader]

    store.gather("train", np.arange(50))  # starts threads before the workers are forked
    for one, other in zip(batches(0), batches(2), strict=True):
        assert (one == other).all()


def test_store_does_not_depend_on_the_number_of_processes(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr("arcloop.data.sources.picture_listing._BLOCK_ROWS", 5)
    one = prepare(folder_source(pictures, **JPEG), tmp_path / "one", workers=1)
    two = prepare(folder_source(pictures, **JPEG), tmp_path / "two", workers=2)
    assert one.files == two.files


def test_rows_equal_those_of_the_raw_store(tmp_path, pictures):
    """Same rows and labels, pixels after JPEG compression; unreadable images are skipped."""
    (pictures / "bee" / "bad.png").write_bytes(b"x")
    (pictures / "ant" / "000.png").write_bytes(b"x")
    changed = {"on_bad_image": "skip", "image_size": 16}
    prepare(folder_source(pictures, **changed), tmp_path / "raw", workers=1)
    artifact = prepare(folder_source(pictures, **changed, **JPEG), tmp_path / "jpeg", workers=1)
    assert artifact.info["skipped"]["count"] == 2
    raw, jpeg = Store.open(tmp_path / "raw"), Store.open(tmp_path / "jpeg")
    assert sum(jpeg.rows(split) for split in SPLITS) == 44
    for split in SPLITS:
        ((images, labels),), ((decoded, same),) = raw.batches(split, 99), jpeg.batches(split, 99)
        assert labels.tolist() == same.tolist()
        assert (decoded == np.stack([through_jpeg(image) for image in images])).all()


def test_store_key_contains_the_quality_only_for_jpeg():
    keys = {
        (encoding, quality): store_key(synthetic_source(encoding=encoding, jpeg_quality=quality))
        for encoding in ("raw", "jpeg")
        for quality in (80, 90)
    }
    assert keys["raw", 80] == keys["raw", 90]
    assert len(set(keys.values())) == 3


@pytest.mark.parametrize("wrong", [{"encoding": "png"}, {"jpeg_quality": 0}, {"jpeg_quality": 101}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"data.{next(iter(wrong))}="):
        synthetic_source(**wrong)


def test_images_that_jpeg_does_not_support_are_refused(tmp_path):
    source = synthetic_source(image_size=[65_501, 8], **JPEG)
    with pytest.raises(DataError, match="cannot be stored as JPEG") as caught:
        prepare(source, tmp_path / "store")
    assert "encoding=raw" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


# --- validation


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    path = tmp_path_factory.mktemp("undamaged") / "store"
    prepare(synthetic_source(image_size=24, **JPEG), path)
    return path


@pytest.fixture
def copy(undamaged, tmp_path):
    return Path(shutil.copytree(undamaged, tmp_path / "store"))


def rewrite(store, split, shard, change):
    """Apply `change` to the list of encoded rows of a shard and write it as `prepare` would."""
    folder = store / split
    encoded = np.load(folder / f"jpeg-{shard:05d}.npy").tobytes()
    offsets = np.load(folder / f"offsets-{shard:05d}.npy")
    rows = [encoded[a:b] for a, b in itertools.pairwise(offsets)]
    change(rows)
    np.save(folder / f"jpeg-{shard:05d}.npy", np.frombuffer(b"".join(rows), np.uint8))
    ends = np.cumsum([0, *map(len, rows)])
    np.save(folder / f"offsets-{shard:05d}.npy", ends)
    reseal(store)


def reseal(store):
    manifest = json.loads((store / "manifest.json").read_text())
    write_manifest(store, "store", config=manifest["config"], parents={}, info=manifest["info"])


def errors(store, settings):
    """Validate a store that must fail; return each error as (check, file or split, row)."""
    with pytest.raises(DataError):
        validate(store, store.parent / "validation", settings)
    report = json.loads((store.parent / "validation" / "report.json").read_text())
    return {(f["check"], f["file"] or f["split"], f["row"]) for f in report["errors"]}


def test_an_undamaged_store_passes(undamaged, tmp_path, settings):
    assert validate(undamaged, tmp_path / "validation", settings).info["errors"] == 0


def encode(shape):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    "row", [b"\xff\xd8 no image", b"cut", encode((24, 25))], ids=["junk", "cut", "other size"]
)
def test_an_undecodable_row_is_named(copy, settings, row):
    def change(rows):
        rows[3] = rows[3][: len(rows[3]) // 2] if row == b"cut" else row

    rewrite(copy, "train", 1, change)
    assert errors(copy, settings) == {("decode", "train/jpeg-00001.npy", 3)}
    if row != encode((24, 25)):
        with pytest.raises(ArtifactError, match=r"row 3 of jpeg-00001\.npy") as caught:
            Store.open(copy).gather("train", np.arange(16, 32))
        assert "validate" in caught.value.remedy


def test_rows_next_to_an_undecodable_one_are_checked(copy, settings, monkeypatch):
    """Blocks of two rows, with a leaked image directly before and after the undecodable row."""
    monkeypatch.setattr("arcloop.data.store.shards._BLOCK_BYTES", 2 * 24 * 24)
    query = []
    rewrite(copy, "query", 0, query.extend)

    def change(rows):
        rows[2:5] = [query[0], b"junk", query[1]]

    rewrite(copy, "train", 0, change)
    assert errors(copy, settings) == {
        ("decode", "train/jpeg-00000.npy", 3),
        ("leak", "query/jpeg-00000.npy", 0),
        ("leak", "query/jpeg-00000.npy", 1),
    }
    report = (copy.parent / "validation" / "report.json").read_text()
    for row in (2, 4):
        assert f"the same image as train/jpeg-00000.npy row {row}" in report


@pytest.mark.parametrize(
    ("change", "row"),
    [
        (lambda o: o.__setitem__(0, 4), 0),
        (lambda o: o.__setitem__(2, o[1]), 1),
        (lambda o: o.__setitem__(5, o[4] - 9), 4),
        (lambda o: o.__setitem__(-1, o[-1] + 1), 15),
        (lambda o: o.__setitem__(-1, 2**40), 15),
    ],
)
def test_invalid_offsets_are_named(copy, settings, change, row):
    file = copy / "train" / "offsets-00002.npy"
    offsets = np.load(file)
    change(offsets)
    np.save(file, offsets)
    reseal(copy)
    assert errors(copy, settings) == {("offset", "train/offsets-00002.npy", row)}


def test_damaged_files_are_named(copy, settings):
    flipped = copy / "train/jpeg-00000.npy"
    content = bytearray(flipped.read_bytes())
    content[128 + 15] ^= 1  # part of the pixel density, which decoders ignore
    flipped.write_bytes(content)
    (copy / "val/jpeg-00000.npy").unlink()
    os.truncate(copy / "gallery/offsets-00000.npy", 140)
    np.save(copy / "query/offsets-00000.npy", np.load(copy / "query/offsets-00000.npy")[:-1])
    np.save(copy / "query/jpeg-00001.npy", np.zeros((2, 3), np.uint8))
    assert {
        ("checksum", "train/jpeg-00000.npy", None),
        ("checksum", "val/jpeg-00000.npy", None),
        ("checksum", "gallery/offsets-00000.npy", None),
        ("header", "query/offsets-00000.npy", None),
        ("checksum", "query/offsets-00000.npy", None),
        ("header", "query/jpeg-00001.npy", None),
        ("checksum", "query/jpeg-00001.npy", None),
    } == errors(copy, settings)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """Ten times the images (37 MB of pixels) may need at most 10 % more memory."""
    shape = {"image_size": 64, "channels": 3, "noise": 0.5, "shard_rows": 100}
    sources = (synthetic_source(train=rows, query=rows, **shape, **JPEG) for rows in (150, 1_500))
    few, many = peaks_of_memory(tmp_path, *sources)
    assert many < 1.1 * few
