import json
import os

import numpy as np
import pytest
from PIL import Image

from arcloop import artifacts
from arcloop.data import SPLITS, Store, SyntheticSource, prepare, store_key
from arcloop.errors import ArtifactError, ConfigError, ResourceError

from .conftest import folder_source, peaks_of_memory, synthetic_source


def test_layout_and_manifest(tmp_path):
    artifact = prepare(synthetic_source(), tmp_path / "store")
    path = tmp_path / "store"
    assert json.loads((path / "classes.json").read_text()) == ["class-0", "class-1", "class-2"]
    names = [f"{kind}-{number:05d}.npy" for kind in ("images", "labels") for number in range(4)]
    assert sorted(file.name for file in (path / "train").iterdir()) == names
    assert np.load(path / "train/images-00003.npy").shape == (2, 8, 8, 1)
    assert artifact.kind == "store"
    assert artifact.path == path
    assert artifact.config["num_classes"] == 3
    assert artifact.info["key"] == store_key(synthetic_source())
    assert artifact.info["classes"] == 3
    assert artifact.info["image_shape"] == [8, 8, 1]
    assert artifact.info["splits"]["train"] == {"rows": 50, "shards": [16, 16, 16, 2]}
    assert artifact.info["skipped"] == {"count": 0, "names": []}


def test_existing_store_is_returned_unchanged(tmp_path):
    first = prepare(synthetic_source(), tmp_path / "store")
    before = (tmp_path / "store/manifest.json").stat().st_mtime_ns
    assert prepare(synthetic_source(), tmp_path / "store") == first
    assert (tmp_path / "store/manifest.json").stat().st_mtime_ns == before


def test_other_store_is_not_overwritten(tmp_path):
    first = prepare(synthetic_source(), tmp_path / "store")
    with pytest.raises(ArtifactError, match="from another source") as caught:
        prepare(synthetic_source(seed=2), tmp_path / "store")
    assert "delete" in caught.value.remedy
    assert artifacts.load(tmp_path / "store", "store") == first


def test_damaged_store_is_not_returned(tmp_path):
    prepare(synthetic_source(), tmp_path / "store")
    os.truncate(tmp_path / "store/val/images-00000.npy", 300)
    with pytest.raises(ArtifactError, match=r"images-00000.npy has 300 bytes"):
        prepare(synthetic_source(), tmp_path / "store")


def test_two_stores_of_one_source_are_equal(tmp_path):
    one, two = (prepare(synthetic_source(), tmp_path / name) for name in ("one", "two"))
    assert one.sha256 == two.sha256


def test_failure_in_the_middle_leaves_nothing(tmp_path, pictures):
    (pictures / "ant/000.png").write_bytes(b"x")
    with pytest.raises(Exception, match="cannot be read"):
        prepare(folder_source(pictures), tmp_path / "stores" / "store", workers=1)
    assert list((tmp_path / "stores").iterdir()) == []


@pytest.mark.parametrize("known", [True, False])
def test_full_disk(small_disk, known):
    """The size of raw images is known before any is read, that of encoded images is not."""
    if known:
        source = synthetic_source(train=20_000, shard_rows=20_000)  # 1.4 MB
    else:
        source = synthetic_source(
            image_size=64, noise=0.5, train=900, encoding="jpeg", jpeg_quality=100
        )
    with pytest.raises(ResourceError, match="No space left") as caught:
        prepare(source, small_disk / "store")
    assert "free some space" in caught.value.remedy
    assert list(small_disk.iterdir()) == []


def test_full_disk_is_reported_before_images_are_read(small_disk, pictures):
    (pictures / "ant/000.png").write_bytes(b"x")
    with pytest.raises(ResourceError, match="No space left"):
        prepare(folder_source(pictures, image_size=512), small_disk / "store", workers=1)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """90,000 more images of 256 bytes, 22,500 KiB, take less than half of that more memory."""
    sources = (
        synthetic_source(train=rows, query=rows, image_size=16, noise=0.5, shard_rows=2_000)
        for rows in (5_000, 50_000)
    )
    few, many = peaks_of_memory(tmp_path, *sources)
    assert many - few < 11_250


def test_real_mnist(tmp_path):
    """The bundled files: 45k/5k/10k of the training file, the test file in its order."""
    from pathlib import Path

    from .conftest import idx_source

    root = Path(__file__).parents[2] / "data" / "mnist"
    source = idx_source(root, shard_rows=20_000, val=5000, gallery=10_000)
    prepare(source, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert [store.rows(split) for split in SPLITS] == [45_000, 5_000, 10_000, 10_000]
    # Known counts of digits in the two files, from the set's description.
    train = sum(np.bincount(store.labels(split)) for split in ("train", "val", "gallery"))
    assert train.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(store.labels("query")).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert store.labels("query")[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_source_is_plain_data():
    assert isinstance(eval(repr(synthetic_source())), SyntheticSource)


def write_pictures(root, classes):
    """Write files from class -> file name -> pixel values; equal values are equal pictures."""
    for name, files in classes.items():
        (root / name).mkdir(parents=True)
        for file, value in files.items():
            pixels = np.random.default_rng(value).integers(0, 256, (4, 6, 4), np.uint8)
            pixels[..., 3] = 255 if value % 2 else 0
            Image.fromarray(pixels).save(root / name / file)


def test_of_equal_pictures_one_is_kept(tmp_path, capsys):
    own = {f"c{c}": {f"{n}.png": 1 + 2 * (10 * c + n) for n in range(8)} for c in range(3)}
    own["c0"]["again.png"] = own["c0"]["3.png"]
    own["c2"]["other.bmp"] = own["c1"]["0.png"]  # other bytes, other class
    write_pictures(tmp_path / "root", own)
    source = folder_source(tmp_path / "root", on_duplicate="drop")
    store = prepare(source, tmp_path / "store")
    assert sum(split["rows"] for split in store.info["splits"].values()) == 24
    assert store.info["dropped"]["count"] == 2
    printed = capsys.readouterr().err
    root = tmp_path / "root"
    conflict = f"{root}/c2/other.bmp: the same picture as {root}/c1/0.png, but of class 'c2'"
    assert f"    {conflict} instead of 'c1'\n    {root}/c0/again.png: the same" in printed
    images = [
        Store(store).gather(split, np.arange(Store(store).rows(split)))[0] for split in SPLITS
    ]
    assert len({image.tobytes() for split in images for image in split}) == 24
    assert prepare(source, tmp_path / "store") == store
    with pytest.raises(ConfigError, match="on_duplicate=drop compares all images"):
        prepare(source, tmp_path / "other", append=True)


def test_of_equal_pictures_in_given_splits_train_keeps_its_own(tmp_path):
    for number, split in enumerate(reversed(SPLITS)):
        classes = {c: {f"{n}.png": 1 + 2 * (100 * number + n + 50 * (c == "b")) for n in range(3)}
                   for c in "ab"}  # fmt: skip
        classes["a"]["same.png"] = 9001
        write_pictures(tmp_path / "root" / split, classes)
    store = prepare(folder_source(tmp_path / "root", on_duplicate="drop"), tmp_path / "store")
    rows = {split: facts["rows"] for split, facts in store.info["splits"].items()}
    assert rows == {"train": 7, "val": 6, "gallery": 6, "query": 6}


def test_a_class_without_a_picture_of_its_own_is_left_out(tmp_path, capsys):
    own = {f"c{c}": {f"{n}.png": 1 + 2 * (10 * c + n) for n in range(8)} for c in range(3)}
    own["copy"] = dict(own["c1"])
    write_pictures(tmp_path / "root", own)
    store = prepare(folder_source(tmp_path / "root", on_duplicate="drop"), tmp_path / "store")
    assert Store(store).classes == ["c0", "c1", "c2"]
    assert "'copy' (0)" in capsys.readouterr().err


def test_transparent_images_are_counted_and_their_background_recorded(tmp_path, capsys):
    write_pictures(tmp_path / "root", {c: {f"{n}.png": n + 20 * k for n in range(10)}
                                       for k, c in enumerate("ab")})  # fmt: skip
    prepare(folder_source(tmp_path / "root"), tmp_path / "black")
    assert (
        "prepare: 10 images have transparent parts, which became black" in capsys.readouterr().err
    )
    source = folder_source(tmp_path / "root", background="white", resize="pad")
    store = prepare(source, tmp_path / "white")
    assert "transparent" not in capsys.readouterr().err
    assert (store.info["background"], store.info["resize"]) == ("white", "pad")
    assert store.info["transparent"] == 10
    images, _ = Store(store).gather("train", np.arange(Store(store).rows("train")))
    assert {image.min() == 255 for image in images} == {False, True}
    assert Store(store).conversion.background == "white"


def test_defaults_of_new_settings_do_not_change_the_key(tmp_path):
    """Stores of earlier versions are found."""
    source = folder_source(tmp_path)
    assert not {"background", "resize", "on_duplicate"} & source.settings().keys()
    changed = folder_source(tmp_path, background="white", resize="crop", on_duplicate="drop")
    assert {"background", "resize", "on_duplicate"} <= changed.settings().keys()
