"""Image files that look alike: their hashes, and the findings about them."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from tests.data.conftest import folder_source

from arcloop.data import prepare, validate
from arcloop.data.validation.near_duplicates import hash_images, look_alike, similar_hashes
from arcloop.errors import DataError

ANOTHER_CLASS, LEAK = "near-duplicate of another class", "near-duplicate leak"


def scene(seed, size=48):
    """A picture of soft shapes in colour."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC)


def copies(picture):
    """The picture as a JPEG file, at another size, and darker."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=60)
    width, height = picture.size
    return {
        "recompressed": Image.open(content),
        "larger": picture.resize((2 * width, 2 * height), Image.Resampling.BICUBIC),
        "smaller": picture.resize((3 * width // 4, 3 * height // 4), Image.Resampling.BICUBIC),
        "darker": ImageEnhance.Brightness(picture).enhance(0.85),
    }


@given(st.integers(0, 2**32 - 1), st.integers(0, 9))
@hypothesis_settings(max_examples=30, deadline=None)
def test_pairs_of_hashes_are_those_of_all_comparisons(seed, distance):
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**63, 6, dtype=np.uint64)
    flips = (rng.random((120, 64)) < rng.choice([0.02, 0.05, 0.1])) @ (
        1 << np.arange(64, dtype="u8")
    )
    hashes = rng.choice(centres, 120) ^ flips.astype(np.uint64)
    found = set()
    for one, other in similar_hashes(hashes, distance):
        found |= {tuple(sorted(pair)) for pair in zip(one.tolist(), other.tolist(), strict=True)}
    numbers = hashes.tolist()
    assert found == {
        (one, other)
        for other in range(120)
        for one in range(other)
        if (numbers[one] ^ numbers[other]).bit_count() <= distance
    }


def test_many_equal_hashes_give_few_pairs():
    """The number of comparisons is proportional to that of images, even if all look alike."""
    hashes = np.full(3000, 77, np.uint64)
    pairs = [
        pair for one, other in similar_hashes(hashes, 0) for pair in zip(one, other, strict=True)
    ]
    assert len(pairs) <= 3000 * 256
    assert {place for pair in pairs for place in pair} == set(range(3000))


@pytest.mark.parametrize("size", [5, 32, 112])
def test_copies_have_near_hashes_and_other_pictures_do_not(size):
    def pixels(picture):
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))[None]

    scenes = [pixels(scene(seed, 150)) for seed in range(20)]
    hashes = np.concatenate([hash_images(image) for image in scenes])
    if size > 5:
        distances = np.bitwise_count(hashes[:, None] ^ hashes) + 64 * np.eye(20, dtype=np.uint8)
        assert distances.min() > 6
    for image in map(pixels, copies(scene(0, 150)).values()):
        assert np.bitwise_count(hash_images(image) ^ hashes[0])[0] <= 6
        assert look_alike(image, scenes[0]).tolist() == [True]
        assert not look_alike(np.repeat(image, 19, 0), np.concatenate(scenes[1:])).any()


def test_another_colour_or_contrast_does_not_look_alike():
    image = np.asarray(scene(1))
    changed = [image[..., [2, 0, 1]], image // 2, 255 - image]
    assert not look_alike(np.repeat(image[None], 3, 0), np.stack(changed)).any()
    assert look_alike(image[None], image[None] - image.min() // 2).all()


@pytest.fixture
def by_split(tmp_path):
    """A folder with given splits, of two classes with 3 pictures each, all of them different."""
    for number, split in enumerate(("train", "val", "gallery", "query")):
        for label in (0, 1):
            folder = tmp_path / f"pictures/{split}/class-{label}"
            folder.mkdir(parents=True)
            for row in range(3):
                scene([number, label, row]).save(folder / f"{row}.png")
    return tmp_path / "pictures"


def report_of(root, settings, **changed):
    work = root.parent / f"work-{len(list(root.parent.iterdir()))}"
    source = folder_source(root, image_size=32, **changed)
    prepare(source, work / "store", workers=1)
    try:
        validate(work / "store", work / "validation", settings)
    except DataError as error:
        raise AssertionError(error) from error
    return json.loads((work / "validation/report.json").read_bytes()), work / "validation"


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_near_duplicates_are_warnings_that_name_both_files(by_split, settings, capfd, encoding):
    assert report_of(by_split, settings, encoding=encoding)[0]["counts"] == []
    original = Image.open(by_split / "train/class-0/0.png")
    for kind, copy in copies(original).items():
        copy.save(by_split / f"query/class-0/{kind}.png")
    Image.open(by_split / "val/class-1/1.png").resize((64, 64)).save(
        by_split / "val/class-0/same.png"
    )
    for colour in range(0, 240, 8):  # images of one colour do not resemble each other
        split, label = ("train", "val", "query")[colour % 3], colour % 2
        Image.new("RGB", (9, 9), (colour,) * 3).save(
            by_split / f"{split}/class-{label}/flat-{colour}.png"
        )
    lenient = replace(settings, max_empty_fraction=1.0, max_listed=100)
    report, page = report_of(by_split, lenient, encoding=encoding)
    found = {
        check: {(f["image"], f["message"]) for f in report["warnings"] if f["check"] == check}
        for check in (ANOTHER_CLASS, LEAK)
    }
    classes = "class 'class-1' instead of 'class-0'"
    assert found == {
        ANOTHER_CLASS: {
            (
                "val/class-1/1.png",
                f"looks like val/class-0/same.png (val), but of {classes}",
            )
        },
        LEAK: {
            (f"query/class-0/{kind}.png", "looks like train/class-0/0.png (train)")
            for kind in copies(original)
        },
    }
    assert f"warning: {LEAK}: 4, see" in capfd.readouterr().err
    html = (page / "report.html").read_text()
    rows = html.split(LEAK)[1].split("</details>")[0].split("<tr>")[2:]
    assert [row.count("data:image/png") for row in rows] == [2] * 4
    off = replace(lenient, near_duplicate_bits=None)
    checks = {count["check"] for count in report_of(by_split, off, encoding=encoding)[0]["counts"]}
    assert checks == {"empty image"}


def test_equal_pictures_are_not_also_near_duplicates(by_split, settings):
    scene(99).save(by_split / "val/class-0/9.png")
    scene(99).save(by_split / "query/class-1/9.png")
    report, _ = report_of(by_split, settings, on_duplicate="warn")
    assert {count["check"]: count["count"] for count in report["counts"]} == {"leak": 1}


def test_a_gallery_that_is_also_the_query_split(tmp_path, settings):
    """A query would find its near-duplicate, so that both classes and splits may be the same."""
    for label in range(8):
        (tmp_path / f"pictures/class-{label}").mkdir(parents=True)
        for row in range(3):
            scene([label, row]).save(tmp_path / f"pictures/class-{label}/{row}.png")
        smaller = scene([label, 0]).resize((40, 40))
        smaller.save(tmp_path / f"pictures/class-{label}/small.png")
    report, page = report_of(tmp_path / "pictures", settings, split="disjoint", test_classes=4)
    assert json.loads((page.parent / "store/manifest.json").read_bytes())["info"]["leave_one_out"]
    assert {count["check"]: count["count"] for count in report["counts"]} == {LEAK: 4}
