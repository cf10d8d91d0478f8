"""Images of one store are found in another by file and content, or by pixels."""

import shutil

import numpy as np
import pytest
from PIL import Image

from arcloop.config.composition import build, compose_config
from arcloop.data import Store, prepare
from arcloop.data.store.matching import match_rows

SPLITS = ("train", "val", "gallery", "query")
CLASSES = ("b", "a", "c")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six images of each of three classes; the brightness of an image is its number."""
    root = tmp_path_factory.mktemp("pictures")
    numbers = iter(range(100, 250))
    for name in CLASSES:
        (root / name).mkdir()
        for row in range(6):
            pixels = np.full((9, 9), next(numbers), np.uint8)
            pixels[row, 1] = 0
            Image.fromarray(pixels).save(root / name / f"{row}.png")
    return root


def store(root, name, order, *, size=8, splits=(0, 1, 2, 2, 3, 3), rename=lambda name: name):
    """The store of a list whose rows are in this order."""
    rows = [(c, row) for c in CLASSES for row in range(len(splits))]
    lines = [f"{rows[i][0]}/{rows[i][1]}.png,{rename(rows[i][0])},{SPLITS[splits[rows[i][1]]]}"
             for i in order]  # fmt: skip
    (root / f"{name}.csv").write_text("\n".join(["path,label,split", *lines]))
    config = compose_config(["data=csv", f"data.file={root / name}.csv", "data.channels=1",
                             f"data.image_size={size}", "data.shard_rows=2"])  # fmt: skip
    return Store(prepare(build(config, "data"), root / f"store-{name}", workers=1))


def files(of, split):
    return [of.describe(split, row)["file"] for row in range(of.rows(split))]


def test_files_are_found_in_another_order_and_size(pictures):
    one = store(pictures, "one", range(18))
    other = store(pictures, "other", np.random.default_rng(0).permutation(18), size=12)
    for split in ("gallery", "query"):
        rows = match_rows(one, other, split)
        assert files(one, split) == [files(other, split)[row] for row in rows]
        assert rows.tolist() != list(range(6))


def test_another_picture_class_or_split_is_not_equal(pictures, tmp_path):
    one = store(pictures, "first", range(18))
    assert match_rows(one, store(pictures, "split", range(18), splits=(0, 1, 2, 2, 2, 3)),
                      "query") is None  # fmt: skip
    swapped = store(pictures, "swap", range(18), splits=(0, 1, 2, 3, 2, 3))
    assert match_rows(one, swapped, "query") is None
    mixed = store(pictures, "class", range(18), rename={"a": "b", "b": "a", "c": "c"}.get)
    assert match_rows(one, mixed, "query") is None
    shutil.copytree(pictures, tmp_path / "changed")
    Image.new("L", (9, 9), 50).save(tmp_path / "changed/a/4.png")
    assert match_rows(one, store(tmp_path / "changed", "new", range(18)), "query") is None
    assert match_rows(one, store(tmp_path / "changed", "new", range(18)), "gallery") is not None


def synthetic(folder, *overrides):
    config = compose_config(["data=synthetic", "data.image_size=8", "data.num_classes=3",
                             "data.train=9", "data.val=6", "data.gallery=9", "data.query=40",
                             *overrides])  # fmt: skip
    return Store(prepare(build(config, "data"), folder, workers=1))


def test_images_without_files_are_found_by_their_pixels(tmp_path):
    one = synthetic(tmp_path / "one")
    same = synthetic(tmp_path / "same", "data.shard_rows=7")
    assert one.artifact.sha256 != same.artifact.sha256
    assert match_rows(one, same, "query").tolist() == list(range(40))
    assert match_rows(one, synthetic(tmp_path / "seed", "data.seed=1"), "query") is None
    assert match_rows(one, synthetic(tmp_path / "size", "data.image_size=9"), "query") is None
