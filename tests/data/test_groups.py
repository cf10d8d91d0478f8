"""Groups of images, e.g. videos, from the source to the store."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from tests.data.conftest import csv_source, folder_source, write_list

from arcloop.data import SPLITS, Store, prepare, store_key, validate
from arcloop.errors import ConfigError, DataError

VIDEOS = 8  # of each class, with 3 images each


def draw(root, name, videos, frames=range(3)):
    """Write root/<name>/<video>_<frame>.png."""
    target = root / name
    target.mkdir(parents=True, exist_ok=True)
    for video in videos:
        for frame in frames:
            seed = [ord(name[0]), int(video[1:]), frame]
            image = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
            Image.fromarray(image).save(target / f"{video}_{frame}.png")


def videos(first=0, last=VIDEOS):
    return [f"v{number}" for number in range(first, last)]


@pytest.fixture
def root(tmp_path):
    for name in ("ant", "bee", "cow"):
        draw(tmp_path / "root", name, videos())
    return tmp_path / "root"


def video(file):
    return f"{file.parent.name}/{file.name.split('_')[0]}"


def groups_by_path(artifact):
    """Return path -> name of its group, or None, and path -> split."""
    store, group_of, split_of = Store(artifact), {}, {}
    names = json.loads((artifact.path / "groups.json").read_bytes())
    for split in SPLITS[:-1] if store.leave_one_out else SPLITS:
        shards = range(len(artifact.info["splits"][split]["shards"]))
        files = [np.load(artifact.path / split / f"origins-{n:05d}.npy")["path"] for n in shards]
        groups = store.groups(split)
        assert groups.dtype == np.int64
        assert len(groups) == store.rows(split)
        for path, group in zip(np.concatenate(files) if files else (), groups, strict=True):
            group_of[os.fsdecode(path)] = names[group] if group >= 0 else None
            split_of[os.fsdecode(path)] = split
    return group_of, split_of


@pytest.mark.parametrize("kind", ["folders", "list"])
@pytest.mark.parametrize("split", ["stratified", "disjoint", "evaluation"])
def test_the_store_has_the_group_of_every_image_and_splits_keep_groups(
    tmp_path, root, settings, kind, split
):
    draw(root, "dog", videos())
    draw(root, "elk", videos())
    draw(root, "fox", videos())
    changed = {"split": split, "shard_rows": 7}
    if kind == "folders":
        source = folder_source(root, group=r"^(\w+/v\d+)_", **changed)
    else:
        source = csv_source(write_list(root, group=video), **changed)
    artifact = prepare(source, tmp_path / "store", workers=1)
    group_of, split_of = groups_by_path(artifact)
    assert group_of == {str(f.relative_to(root)): video(f) for f in root.glob("*/*.png")}
    assert len({(group, split_of[path]) for path, group in group_of.items()}) == 6 * VIDEOS
    assert json.loads((tmp_path / "store/groups.json").read_bytes()) == sorted(
        set(group_of.values())
    )
    info = validate(tmp_path / "store", tmp_path / "validation", settings).info
    assert (info["errors"], info["warnings"]) == (0, 0)


def test_a_group_may_contain_several_classes(tmp_path, root):
    source = folder_source(root, group=r"/(v\d+)_")
    group_of, split_of = groups_by_path(prepare(source, tmp_path / "store", workers=1))
    assert set(group_of.values()) == set(videos())
    assert len({(group_of[path], split) for path, split in split_of.items()}) == VIDEOS
    assert set(split_of.values()) == set(SPLITS)


def test_images_without_a_group(tmp_path, root, settings):
    file = write_list(root, group=lambda file: "" if "/v0" in video(file) else video(file))
    artifact = prepare(csv_source(file), tmp_path / "store", workers=1)
    group_of, _ = groups_by_path(artifact)
    assert sum(group is None for group in group_of.values()) == 9
    for path, group in group_of.items():
        assert (group is None) == ("/v0" in path)
    source = folder_source(root, group=r"/(v[1-9])_")
    of_folder = groups_by_path(prepare(source, tmp_path / "folder", workers=1))[0]
    assert sum(group is None for group in of_folder.values()) == 9


def test_skipped_images_do_not_move_the_groups_of_others(tmp_path, root):
    for name in ("ant/v0_1.png", "cow/v5_0.png"):
        (root / name).write_bytes(b"")
    source = folder_source(root, group=r"^(\w+/v\d+)_", on_bad_image="skip")
    group_of, _ = groups_by_path(prepare(source, tmp_path / "store", workers=1))
    assert len(group_of) == 3 * 3 * VIDEOS - 2
    assert all(group == path.partition("_")[0] for path, group in group_of.items())


def test_a_source_without_groups_has_no_files_of_groups(tmp_path, root):
    prepare(folder_source(root), tmp_path / "store", workers=1)
    assert not list((tmp_path / "store").rglob("groups*"))
    assert Store.open(tmp_path / "store").groups("train") is None


@pytest.mark.parametrize("pattern", ["v", "(v)(_)", "(", "v["])
def test_a_wrong_pattern_is_refused_before_the_images_are_read(pattern):
    with pytest.raises(ConfigError, match=r"data\.group=") as caught:
        folder_source("nowhere", group=pattern)
    assert "'data.group=" in caught.value.remedy


def test_a_pattern_that_matches_nothing_is_refused(root):
    with pytest.raises(DataError, match=r"matches no image, e\.g\. not 'cow/v7_2\.png'"):
        folder_source(root, group="^(session)").open()


def test_given_splits_that_divide_a_group_are_a_warning(tmp_path, root, settings, capsys):
    split_of = {"0": "train", "1": "val", "2": "gallery", "3": "query"}
    draw(root, "cow", ["v7"], range(3, 4))
    draw(root, "bee", ["v0", "v3"], range(3, 4))  # without a group, in train and in query

    def split(file):
        if file.name == "v7_3.png":
            return "query"
        return split_of.get(file.name[1], "train" if file.name[1] != "6" else "gallery")

    def group(file):
        return "" if file in (root / "bee/v0_3.png", root / "bee/v3_3.png") else video(file)

    file = write_list(root, group=group, split=split)
    artifact = prepare(csv_source(file), tmp_path / "store", workers=1)
    assert groups_by_path(artifact)[0]["cow/v7_3.png"] == "cow/v7"
    validate(tmp_path / "store", tmp_path / "validation", settings)
    report = json.loads((tmp_path / "validation/report.json").read_bytes())
    assert [(w["check"], w["split"], w["message"]) for w in report["warnings"]] == [
        ("divided groups", "train", "1 groups are also in query: 'cow/v7'")
    ]


def test_a_damaged_file_of_groups_is_reported(tmp_path, root, settings):
    prepare(folder_source(root, group=r"/(v\d+)_"), tmp_path / "store", workers=1)
    for name in ("groups.json", "val/groups-00000.npy"):
        content = bytearray((tmp_path / "store" / name).read_bytes())
        content[-1] ^= 1
        (tmp_path / "store" / name).write_bytes(content)
    with pytest.raises(DataError, match=r"the store has 2 error\(s\)") as caught:
        validate(tmp_path / "store", tmp_path / "validation", settings)
    assert "groups.json" in str(caught.value)
    assert "val/groups-00000.npy" in str(caught.value)


# --- appending


def place(tmp_path, source):
    return tmp_path / "stores" / store_key(source)


def append(tmp_path, source):
    return prepare(source, place(tmp_path, source), append=True, workers=1)


def test_appended_images_go_to_the_split_of_their_group(tmp_path, root):
    source = folder_source(root, group=r"^(\w+/v\d+)_")
    first = prepare(source, place(tmp_path, source), workers=1)
    _, before = groups_by_path(first)
    draw(root, "bee", videos(), range(3, 5))  # of stored groups
    draw(root, "ant", videos(VIDEOS, VIDEOS + 6))  # of new groups, which sort among the others
    draw(root, "ape", videos())  # of a new class
    grown = append(tmp_path, source)
    group_of, after = groups_by_path(grown)
    assert before.items() <= after.items()
    assert group_of == {str(f.relative_to(root)): video(f) for f in root.glob("*/*.png")}
    assert (
        len({(group, after[path]) for path, group in group_of.items()}) == 3 * VIDEOS + 6 + VIDEOS
    )
    assert {split for path, split in after.items() if path.startswith("ape")} == set(SPLITS)
    names, old = (json.loads((a.path / "groups.json").read_bytes()) for a in (grown, first))
    assert names[: len(old)] == old
    assert (grown.path / "train/groups-00000.npy").samefile(first.path / "train/groups-00000.npy")
    assert append(tmp_path, source) == grown


def test_a_stored_image_in_another_group_is_refused(tmp_path, root):
    prepare(source := csv_source(write_list(root, group=video)), place(tmp_path, source), workers=1)
    draw(root, "ape", videos())
    write_list(root, group=lambda f: "bee/v1" if f == root / "bee/v0_1.png" else video(f))
    with pytest.raises(DataError, match=r"1 of its images were changed since:\n *bee/v0_1\.png"):
        append(tmp_path, source)


@pytest.mark.parametrize("has_groups", [True, False])
def test_groups_in_only_one_of_source_and_store_are_refused(tmp_path, root, has_groups):
    with_groups = write_list(root, group=video).read_text()
    without = with_groups.replace("group", "other")
    (root / "list.csv").write_text(with_groups if has_groups else without)
    prepare(source := csv_source(root / "list.csv"), place(tmp_path, source), workers=1)
    (root / "list.csv").write_text(without if has_groups else with_groups)
    one, other = ("store", "source") if has_groups else ("source", "store")
    with pytest.raises(DataError, match=f"the {one} has groups, but the {other} has none"):
        append(tmp_path, source)


def test_with_disjoint_splits_a_new_image_cannot_join_classes_of_two_splits(tmp_path, root):
    for name in ("dog", "elk", "fox"):
        draw(root, name, videos())
    source = csv_source(write_list(root, group=video), split="disjoint")
    first = prepare(source, place(tmp_path, source), workers=1)
    classes = Store(first).classes  # those of train are first
    draw(root, classes[0], ["v0"], [3])
    write_list(root, group=video)
    grown = append(tmp_path, source)
    assert groups_by_path(grown)[1][f"{classes[0]}/v0_3.png"] == "train"
    draw(root, classes[0], ["v0"], [4])
    joined = f"{classes[-1]}/v0"
    write_list(root, group=lambda file: joined if file.name == "v0_4.png" else video(file))
    with pytest.raises(DataError, match=f"join classes of several splits: group '{joined}'"):
        append(tmp_path, source)


def test_images_can_be_added_to_disjoint_splits_if_no_image_has_a_group(tmp_path, root):
    for name in ("dog", "elk", "fox"):
        draw(root, name, videos())
    source = csv_source(write_list(root, group=lambda file: ""), split="disjoint")
    first = prepare(source, place(tmp_path, source), workers=1)
    last = Store(first).classes[-1]
    draw(root, last, ["v0"], [3])
    write_list(root, group=lambda file: "")
    group_of, split_of = groups_by_path(append(tmp_path, source))
    assert set(group_of.values()) == {None}
    assert split_of[f"{last}/v0_3.png"] == "gallery"
