"""The table "How many images a class needs" of docs/data.md: each number passes, one less fails."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from tests.data.conftest import folder_source, idx_source, write_idx, write_pictures

from arcloop.data import prepare, validate
from arcloop.errors import ConfigError, DataError

CLASSES = 6


def is_accepted(tmp_path, source, settings):
    prepare(source, tmp_path / "store", workers=1)
    validate(tmp_path / "store", tmp_path / "validation", settings)


def expect(accepted):
    return contextlib.nullcontext() if accepted else pytest.raises((ConfigError, DataError))


def write_drawn(tmp_path, number):
    for seed in range(CLASSES):
        write_pictures(tmp_path / f"root/c{seed}", number, seed=seed)
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("number", "changed", "min_train", "accepted"),
    [
        (6, {}, 2, True),
        (5, {}, 2, False),
        (5, {}, 1, True),
        (4, {}, 1, False),
        (6, {"val": 12, "gallery": 6, "query": 6}, 2, True),
        (6, {"val": 11, "gallery": 6, "query": 6}, 2, False),
        (6, {"val": 12, "gallery": 5, "query": 6}, 2, False),
        (6, {"group": "(.+)"}, 2, True),
        (18, {"group": r"(c\d/[0-5])-"}, 2, True),
        (2, {"split": "disjoint"}, 2, True),
        (1, {"split": "disjoint"}, 1, False),
        (2, {"split": "evaluation"}, 2, True),
        (1, {"split": "evaluation"}, 2, False),
    ],
)
def test_drawn_splits(tmp_path, settings, number, changed, min_train, accepted):
    root = write_drawn(tmp_path, number)
    if changed.get("group") == r"(c\d/[0-5])-":  # 6 groups of 3
        for file in root.glob("*/*.png"):
            file.rename(file.with_name(f"{int(file.stem) // 3}-{file.name}"))
    source = folder_source(root, **changed)
    with expect(accepted):
        is_accepted(tmp_path, source, replace(settings, min_images_per_class=min_train))


@pytest.mark.parametrize(
    ("split", "numbers", "accepted"),
    [
        ("stratified", {"train": 2, "val": 2, "gallery": 1}, True),
        ("stratified", {"train": 1, "val": 2, "gallery": 1}, False),
        ("stratified", {"train": 2, "val": 1, "gallery": 1}, False),
        ("stratified", {"train": 2, "val": 2}, False),
        ("evaluation", {"gallery": 1}, True),
    ],
)
def test_given_splits(tmp_path, settings, split, numbers, accepted):
    full = {"train": 3, "val": 3, "gallery": 3, "query": 3}
    for seed, of_class in enumerate([full, full, numbers]):
        for place, (name, number) in enumerate(of_class.items()):
            write_pictures(tmp_path / "root" / name / f"c{seed}", number, seed=10 * seed + place)
    with expect(accepted):
        is_accepted(tmp_path, folder_source(tmp_path / "root", split=split), settings)


@pytest.mark.parametrize(
    ("numbers", "accepted"),
    [((2, 2, 1), True), ((1, 2, 1), False), ((2, 1, 1), False)],
)
def test_given_disjoint_splits_with_query(tmp_path, settings, numbers, accepted):
    for split, number in zip(("train", "val", "gallery"), numbers, strict=True):
        for seed, size in enumerate((3, number)):
            name = f"{split}-{seed}"
            seed = 10 * len(split) + seed
            write_pictures(tmp_path / "root" / split / name, size, seed=seed)
            if split == "gallery":
                write_pictures(tmp_path / "root/query" / name, 2, seed=seed + 100)
    with expect(accepted):
        is_accepted(tmp_path, folder_source(tmp_path / "root", split="disjoint"), settings)


@pytest.mark.parametrize(("number", "accepted"), [(5, True), (4, False)])
def test_idx(tmp_path, settings, number, accepted):
    (tmp_path / "idx").mkdir()
    for part, rows in (("train", number * CLASSES), ("t10k", CLASSES)):
        images = np.random.default_rng(rows).integers(0, 256, (rows, 5, 3), dtype=np.uint8)
        write_idx(tmp_path / "idx" / f"{part}-images-idx3-ubyte", images)
        write_idx(tmp_path / "idx" / f"{part}-labels-idx1-ubyte", np.arange(rows) % CLASSES)
    with expect(accepted):
        is_accepted(tmp_path, idx_source(tmp_path / "idx", val=0.1), settings)
