import hashlib
import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.format import open_memmap
from PIL import Image
from tests.data.conftest import folder_source, synthetic_source, write_idx_set, write_pictures

from arcloop import artifacts
from arcloop.artifacts.writer import write_manifest
from arcloop.data import SPLITS, prepare, validate
from arcloop.data.sources.duplicates import equal_groups
from arcloop.data.validation.inspection import pixel_std
from arcloop.errors import ArtifactError, DataError


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "store"
    prepare(synthetic_source(), path)
    return path


@pytest.fixture
def store(undamaged, tmp_path):
    """Return a copy of the store that a test may damage."""
    return Path(shutil.copytree(undamaged, tmp_path / "store"))


def reseal(store):
    """Rewrite the manifest, as if `prepare` had written the present files."""
    manifest = json.loads((store / "manifest.json").read_text())
    write_manifest(store, "store", config=manifest["config"], parents={}, info=manifest["info"])


def images(store, split, shard):
    return open_memmap(store / split / f"images-{shard:05d}.npy", "r+")


def labels(store, split, shard):
    return open_memmap(store / split / f"labels-{shard:05d}.npy", "r+")


def failed(store, settings):
    """Validate a store that must fail; return its report and the error."""
    output = store.parent / "validation"
    with pytest.raises(DataError) as caught:
        validate(store, output, settings)
    assert artifacts.load(output, "validation").info["passed"] is False
    return json.loads((output / "report.json").read_text()), caught.value


def found(report):
    """Return each error as (check, file or split, row)."""
    return {(f["check"], f["file"] or f["split"], f["row"]) for f in report["errors"]}


def test_undamaged_store_passes(store, settings):
    artifact = validate(store, store / "validation", settings)
    assert artifact.info == {"passed": True, "errors": 0, "warnings": 0}
    assert artifact.parents == {"store": artifacts.load(store, "store").sha256}
    report = json.loads((store / "validation/report.json").read_text())
    assert report["passed"] is True
    assert report["errors"] == report["warnings"] == []
    assert report["classes"]["class-1"] == {"train": 17, "val": 7, "gallery": 7, "query": 7}
    assert (store / "validation/report.html").read_text().startswith("<!doctype html>")


def test_all_faults_of_a_store_are_reported_at_once(store, settings):
    images(store, "query", 0)[3, 0, 0] ^= 1  # flipped
    os.truncate(store / "val/images-00001.npy", 128 + 64 * 2 + 1)  # ends in the third row
    (store / "gallery/labels-00000.npy").unlink()
    (store / "train/images-00001.npy").write_bytes(b"")
    np.save(store / "train/images-00002.npy", np.zeros((16, 8, 8, 1), np.float32))
    np.save(store / "train/labels-00002.npy", np.zeros((15,), np.int32))
    (store / "classes.json").write_text("[]")
    report, error = failed(store, settings)
    damaged = {
        ("checksum", "query/images-00000.npy", None),
        ("checksum", "val/images-00001.npy", None),
        ("checksum", "gallery/labels-00000.npy", None),
        ("checksum", "classes.json", None),
        ("header", "train/images-00001.npy", None),
        ("checksum", "train/images-00001.npy", None),
        ("header", "train/images-00002.npy", None),
        ("checksum", "train/images-00002.npy", None),
        ("header", "train/labels-00002.npy", None),
        ("checksum", "train/labels-00002.npy", None),
    }
    assert damaged <= found(report)
    messages = [fault["message"] for fault in report["errors"]]
    assert any("'shape': (15,)" in message and "'shape': (16,)" in message for message in messages)
    assert any("'<f4'" in message and "'|u1'" in message for message in messages)
    assert "report.html" in error.remedy
    assert "val/images-00001.npy: has 257 bytes, but 384 according to the manifest" in str(error)
    assert error.where == store


def test_labels_out_of_range_are_named(store, settings):
    labels(store, "val", 1)[2] = 3
    labels(store, "query", 0)[:2] = [-1, 2**40]
    reseal(store)
    report, error = failed(store, settings)
    assert found(report) == {
        ("label", "val/labels-00001.npy", 2),
        ("label", "query/labels-00000.npy", 0),
        ("label", "query/labels-00000.npy", 1),
    }
    assert "val/labels-00001.npy row 2: label 3 is not in 0 to 2" in str(error)


@pytest.mark.parametrize("pair", [*itertools.combinations(SPLITS, 2)])
def test_image_in_two_splits_is_an_error(store, settings, pair):
    one, other = pair
    images(store, other, 1)[1] = images(store, one, 0)[5]
    reseal(store)
    report, error = failed(store, settings)
    assert found(report) == {("leak", f"{other}/images-00001.npy", 1)}
    assert f"the same image as {one}/images-00000.npy row 5" in str(error)


def test_image_in_all_splits_is_reported_for_each_pair(store, settings):
    for split in SPLITS:
        images(store, split, 1)[2] = images(store, "train", 0)[0]
        labels(store, split, 1)[2] = labels(store, "train", 0)[0]
    reseal(store)
    report, _ = failed(store, settings)
    assert report["counts"] == [
        {"level": "error", "check": "leak", "count": 6},
        {"level": "warning", "check": "duplicate", "count": 1},
    ]


def test_duplicates_within_a_split_are_warnings(store, settings):
    for row in (4, 9):
        images(store, "train", 2)[row] = images(store, "train", 0)[1]
        labels(store, "train", 2)[row] = labels(store, "train", 0)[1]
    reseal(store)
    artifact = validate(store, store.parent / "validation", settings)
    assert artifact.info == {"passed": True, "errors": 0, "warnings": 2}
    report = json.loads((artifact.path / "report.json").read_text())
    assert [(w["file"], w["row"]) for w in report["warnings"]] == [
        ("train/images-00002.npy", 4), ("train/images-00002.npy", 9),
    ]  # fmt: skip
    assert report["warnings"][0]["message"].endswith("train/images-00000.npy row 1")


@pytest.fixture
def by_split(tmp_path):
    """Pictures of three classes, in folders of the splits."""
    for number, (split, name) in enumerate(itertools.product(SPLITS, "abc")):
        write_pictures(tmp_path / "pictures" / split / name, 4, seed=number)
    return tmp_path / "pictures"


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_a_picture_under_two_labels_is_a_printed_warning(by_split, settings, capfd, encoding):
    shutil.copy(by_split / "train/a/000.png", by_split / "train/c/[bold]same.png")
    shutil.copy(by_split / "train/b/001.png", by_split / "train/b/again.png")
    store = by_split.parent / "store"
    prepare(folder_source(by_split, encoding=encoding), store, workers=1)
    artifact = validate(store, store / "validation", settings)
    assert artifact.info == {"passed": True, "errors": 0, "warnings": 2}
    report = json.loads((artifact.path / "report.json").read_text())
    assert {w["check"]: (w["image"], w["split"]) for w in report["warnings"]} == {
        "duplicate": ("train/b/again.png", "train"),
        "label conflict": ("train/c/[bold]same.png", "train"),
    }
    printed = capfd.readouterr().err
    assert f"warning: label conflict: 1, see {artifact.path}/report.html\n" in printed
    assert (
        "train/c/[bold]same.png (train): the same image as train/a/000.png (train), "
        "but of class 'c' instead of 'a'\n" in printed
    )
    assert "train/b/again.png (train): the same image as train/b/001.png (train)\n" in printed
    assert "train/c/[bold]same.png" in (artifact.path / "report.html").read_text()


def test_errors_of_images_name_the_image_files(by_split, settings):
    shutil.copy(by_split / "train/a/000.png", by_split / "val/b/999.png")
    Image.new("RGB", (6, 4), (9, 9, 9)).save(by_split / "query/c/000.png")
    store = by_split.parent / "store"
    prepare(folder_source(by_split), store, workers=1)
    _, error = failed(store, replace(settings, max_empty_fraction=0.0))
    assert (
        "val/b/999.png (val): the same image as train/a/000.png (train), "
        "but of class 'b' instead of 'a'" in error.what
    )
    assert "query/c/000.png (query): constant or almost constant" in error.what
    assert "data.on_duplicate=drop keeps one of equal pictures" in error.remedy
    shutil.rmtree(store)
    prepare(folder_source(by_split, on_duplicate="warn"), store, workers=1)
    _, error = failed(store, replace(settings, max_empty_fraction=0.0))
    assert "the same image as" not in error.what
    assert "on_duplicate" not in error.remedy


def test_two_labels_without_image_files(store, settings, capfd):
    first, second = labels(store, "train", 0), labels(store, "train", 1)
    row = int(np.flatnonzero(second != first[3])[0])
    images(store, "train", 1)[row] = images(store, "train", 0)[3]
    reseal(store)
    validate(store, store.parent / "validation", settings)
    expected = f"train/images-00001.npy row {row}: the same image as train/images-00000.npy row 3"
    classes = f"class 'class-{second[row]}' instead of 'class-{first[3]}'"
    assert f"{expected}, but of {classes}\n" in capfd.readouterr().err


@pytest.mark.parametrize(("number", "level"), [(5, "warning"), (6, "error")])
def test_empty_images(store, settings, number, level):
    """Up to a tenth of 50 is a warning; empty images are not reported as duplicates."""
    images(store, "train", 1)[:number] = 7
    images(store, "train", 1)[0, 0, 0] = 8  # nearly constant
    images(store, "val", 0)[0] = 7
    reseal(store)
    output = store.parent / "validation"
    if level == "error":
        with pytest.raises(DataError, match=f"the store has {number} error"):
            validate(store, output, settings)
    else:
        validate(store, output, settings)
    report = json.loads((output / "report.json").read_text())
    of_train = [f for f in report[f"{level}s"] if f["split"] == "train"]
    assert {(f["check"], f["file"], f["row"]) for f in of_train} == {
        ("empty image", "train/images-00001.npy", row) for row in range(number)
    }
    assert all(f["check"] == "empty image" for f in report["warnings"])


@pytest.mark.parametrize(("bits", "proposed"), [(10, 1023), (12, 4095), (14, 16383)])
def test_values_in_a_small_part_of_their_range_are_an_error(tmp_path, settings, bits, proposed):
    """With the value that the message proposes, the image is as bright as one of 8 bits."""
    rng = np.random.default_rng(0)
    for name in "abc":
        (tmp_path / "root" / name).mkdir(parents=True)
        for row in range(10):
            values = rng.integers(0, 2**bits, (12, 8)).astype(np.uint16)
            Image.fromarray(values).save(tmp_path / "root" / name / f"{row}.png")
    prepare(folder_source(tmp_path / "root", channels=1), tmp_path / "store", workers=1)
    no_empty = replace(settings, min_std=0.0)
    report, error = failed(tmp_path / "store", no_empty)
    assert found(report) == {("brightness", None, None)}
    assert f"pass data.max_value={proposed};" in str(error)
    source = folder_source(tmp_path / "root", channels=1, max_value=proposed)
    prepare(source, tmp_path / "right", workers=1)
    validate(tmp_path / "right", tmp_path / "validation", settings)
    assert np.load(tmp_path / "right/train/images-00000.npy").max() > 190
    with pytest.raises(DataError, match=r"lower validation\.min_brightest"):
        validate(tmp_path / "store", tmp_path / "validation", no_empty)
    validate(tmp_path / "store", tmp_path / "validation", replace(no_empty, min_brightest=0))


def test_classes_with_too_few_images_are_reported(store, settings):
    for split, keep in (("train", 1), ("val", 1), ("gallery", 0), ("query", 0)):
        for shard in range(4 if split == "train" else 2):
            some = labels(store, split, shard)
            some[np.flatnonzero(some == 2)[keep if shard == 0 else 0 :]] = 0
    reseal(store)
    report, error = failed(store, settings)
    assert found(report) == {("class size", split, None) for split in ("train", "val", "gallery")}
    assert "train: class 'class-2' has 1 image(s); at least 2 are needed" in str(error)
    assert {(w["check"], w["split"]) for w in report["warnings"]} == {
        ("class size", "query"), ("imbalance", "train"),
    }  # fmt: skip


def test_a_class_of_the_test_file_only_is_not_an_error(tmp_path, settings):
    made = write_idx_set(tmp_path / "idx", 60, 20, end="")
    from tests.data.conftest import idx_source, write_idx

    changed = made["t10k"][1].copy()
    changed[0] = 9
    write_idx(tmp_path / "idx/t10k-labels-idx1-ubyte", changed)
    prepare(idx_source(tmp_path / "idx"), tmp_path / "store")
    validate(tmp_path / "store", tmp_path / "validation", settings)
    report = json.loads((tmp_path / "validation/report.json").read_text())
    assert report["query_only"] == {"classes": 1, "images": 1}


def test_long_lists_are_truncated_and_counted(store, settings):
    labels(store, "train", 0)[:] = 7
    reseal(store)
    report, error = failed(store, replace(settings, max_listed=3))
    assert len(report["errors"]) == 3
    assert report["counts"] == [{"level": "error", "check": "label", "count": 16}]
    assert "the store has 16 error(s)" in str(error)
    assert "and 13 more" in str(error)


def test_only_a_passed_validation_is_reused(store, settings):
    output = store / "validation"
    validate(store, output, settings)
    before = (output / "manifest.json").stat().st_ino
    validate(store, output, settings, reuse=True)
    assert (output / "manifest.json").stat().st_ino == before
    validate(store, output, replace(settings, min_std=0.5), reuse=True)
    assert (output / "manifest.json").stat().st_ino != before
    images(store, "query", 0)[3, 0, 0] ^= 1
    for _ in range(2):
        with pytest.raises(DataError):
            validate(store, output, settings, reuse=True)


def test_missing_store_is_reported(tmp_path, settings):
    with pytest.raises(ArtifactError, match="no store here"):
        validate(tmp_path / "store", tmp_path / "validation", settings)
    assert list(tmp_path.iterdir()) == []


def test_page_shows_the_findings(store, settings):
    (store / "classes.json").write_text(json.dumps(["<b>one</b>", "two", "three"]))
    images(store, "query", 1)[1] = images(store, "train", 0)[5]
    reseal(store)
    failed(store, settings)
    page = (store.parent / "validation/report.html").read_text()
    assert "failed" in page
    assert "&lt;b&gt;one&lt;/b&gt;" in page
    assert "<b>one" not in page
    assert "query/images-00001.npy" in page
    assert (
        page.count("data:image/png;base64,") == 3 * 14 + 2
    )  # samples, and the pair of the finding
    assert "<details open>" in page
    assert "http" not in page  # the page loads nothing from other hosts


def test_pixel_std_equals_numpy():
    some = np.random.default_rng(0).integers(0, 256, (40, 300), dtype=np.uint8)
    some[0], some[1], some[2] = 0, 255, 7
    assert np.allclose(pixel_std(some), [np.std(image.astype(float)) for image in some], atol=1e-4)
    assert (pixel_std(some)[:3] == 0).all()


def test_groups_contain_equal_images():
    """Compare with a dictionary of contents."""
    rng = np.random.default_rng(0)
    some = rng.integers(0, 6, (3000, 5), dtype=np.uint8)
    expected: dict[bytes, list[int]] = {}
    for row, image in enumerate(some):
        expected.setdefault(image.tobytes(), []).append(row)
    digests = b"".join(hashlib.md5(image).digest() for image in some)
    groups = [group.tolist() for group in equal_groups(bytearray(digests), np.arange(3000))]
    assert list(equal_groups(bytearray(), np.arange(0))) == []
    assert sorted(groups) == sorted(rows for rows in expected.values() if len(rows) > 1)
