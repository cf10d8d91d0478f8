import json
import os
import socket
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.data.conftest import folder_source, write_pictures

from arcloop.data import SPLITS, Store, prepare, store_key, validate
from arcloop.errors import ConfigError, DataError
from arcloop.runtime.images import EXTENSIONS, FORMATS, decode


def rows_of(store, split):
    return store.gather(split, np.arange(store.rows(split)))


def test_every_picture_is_decoded_to_its_class(tmp_path, pictures):
    prepare(folder_source(pictures), tmp_path / "store", workers=1)
    store = Store.open(tmp_path / "store")
    assert store.classes == ["ant", "bee", "ölkäfer"]
    assert store.image_shape == (6, 4, 3)
    assert [store.rows(split) for split in SPLITS] == [18, 9, 9, 9]
    expected = sorted(
        (decode(path, height=6, width=4, channels=3).tobytes(), label)
        for label, name in enumerate(store.classes)
        for path in (pictures / name).iterdir()
    )
    found = []
    for split in SPLITS:
        images, labels = rows_of(store, split)
        assert np.bincount(labels).tolist() == ([4, 6, 8] if split == "train" else [2, 3, 4])
        found += [(i.tobytes(), int(label)) for i, label in zip(images, labels, strict=True)]
    assert sorted(found) == expected


def test_folder_with_given_splits(tmp_path):
    root = tmp_path / "root"
    for number, split in enumerate(SPLITS, start=2):
        write_pictures(root / split / "a", number)
        write_pictures(root / split / "b", 1, seed=number)
    write_pictures(root / "query" / "only here", 1, seed=9)
    prepare(folder_source(root, channels=1), tmp_path / "store", workers=1)
    store = Store.open(tmp_path / "store")
    assert store.classes == ["a", "b", "only here"]
    assert [store.labels(split).tolist() for split in SPLITS] == [
        [0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1, 2],
    ]  # fmt: skip
    images, _ = rows_of(store, "val")
    path = root / "val" / "a" / "002.png"
    assert (images[2] == decode(path, height=6, width=4, channels=1)).all()


def test_folders_of_the_operating_system_are_no_classes(tmp_path, pictures):
    by_split = tmp_path / "by split"
    for split in SPLITS:
        write_pictures(by_split / split / "a", 3)
    key, key_by_split = store_key(folder_source(pictures)), store_key(folder_source(by_split))
    for parent in (pictures, by_split, *(by_split / split for split in SPLITS)):
        for name in ("lost+found", "__MACOSX", "System Volume Information", "@eaDir"):
            write_pictures(parent / name / "ant", 1)
            write_pictures(parent / name / "train", 1)
    assert store_key(folder_source(pictures)) == key
    assert store_key(folder_source(by_split)) == key_by_split
    prepare(folder_source(pictures), tmp_path / "store", workers=1)
    assert Store.open(tmp_path / "store").classes == ["ant", "bee", "ölkäfer"]


def test_rows_of_a_class_are_in_the_order_of_their_names(tmp_path):
    for seed, split in enumerate(SPLITS):
        write_pictures(tmp_path / "root" / split / "a", 12, seed=seed)
    prepare(folder_source(tmp_path / "root"), tmp_path / "store", workers=1)
    images, _ = rows_of(Store.open(tmp_path / "store"), "val")
    for row, image in enumerate(images):
        path = tmp_path / "root" / "val" / "a" / f"{row:03d}.png"
        assert (image == decode(path, height=6, width=4, channels=3)).all()


def test_train_may_be_a_class(tmp_path):
    for name in ("train", "bus"):
        write_pictures(tmp_path / "toys" / name, 10, seed=len(name))
    prepare(folder_source(tmp_path / "toys"), tmp_path / "store", workers=1)
    assert Store.open(tmp_path / "store").classes == ["bus", "train"]


def test_other_files_are_ignored(tmp_path, pictures):
    (pictures / "notes.txt").write_text("about")
    (pictures / "ant" / "Thumbs.db").write_bytes(b"x")
    (pictures / "ant" / "._000.png").write_bytes(b"x")
    (pictures / ".cache").mkdir()
    Image.new("RGB", (6, 4), (9, 8, 7)).save(pictures / "ant" / "LAST.BMP")
    (pictures / "bee" / "folder.png").mkdir()
    prepare(folder_source(pictures), tmp_path / "store", workers=1)
    assert sum(Store.open(tmp_path / "store").rows(split) for split in SPLITS) == 46


@pytest.mark.parametrize("number", [5, 6, 9, 16])
def test_default_splits_of_few_pictures_pass_validation(tmp_path, settings, number):
    for seed, name in enumerate("abcd"):
        write_pictures(tmp_path / "root" / name, number, seed=seed)
    source = folder_source(tmp_path / "root", val=0.1, gallery=0.2, query=0.2)
    prepare(source, tmp_path / "store", workers=1)
    if number == 5:  # its keys are in the message
        with pytest.raises(DataError, match=r"train: .*\(validation.min_images_per_class\)"):
            validate(tmp_path / "store", tmp_path / "validation", settings)
        settings.min_images_per_class = 1
    assert validate(tmp_path / "store", tmp_path / "validation", settings).info["warnings"] == 0


def test_every_format_is_read(tmp_path, pictures):
    for name in ("ant/000", "bee/003", "ölkäfer/007"):
        for extension in EXTENSIONS:
            with Image.open(pictures / f"{name}.png") as image:
                image.save(pictures / f"{name}x{extension.upper()}")
    prepare(folder_source(pictures), tmp_path / "store", workers=1)
    rows = sum(Store.open(tmp_path / "store").rows(split) for split in SPLITS)
    assert rows == 45 + 3 * len(EXTENSIONS)
    assert {".tif", ".tiff", ".gif", ".jfif", ".jpe", ".avif"} < set(EXTENSIONS)


@pytest.mark.parametrize("given_splits", [False, True])
def test_files_that_are_not_read_are_named_by_extension_and_reason(
    tmp_path, capfd, settings, given_splits
):
    root = tmp_path / "root"
    for seed, split in enumerate(SPLITS):
        for name in "ab":
            folder = root / split / name if given_splits else root / f"{split}{name}"
            write_pictures(folder, 12, seed=10 * seed + ord(name))
    first = root / "train" / "a" if given_splits else root / "traina"
    for number in range(3):
        (first / f"{number}.HEIC").write_bytes(b"x")
    write_pictures(first / "old" / "er", 2, seed=7)
    (root / "loose.png").write_bytes(b"x")
    (root / "README").write_text("about")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "x.txt").write_text("x")
    (first / ".hidden.txt").write_text("x")
    if given_splits:
        write_pictures(root / "test" / "a", 4, seed=9)
    artifact = prepare(folder_source(root), tmp_path / "store", workers=1)
    expected = [
        f"3 .heic: not one of {', '.join(FORMATS)}, e.g. {first}/0.HEIC",
        f"2 .png: in a folder inside the folder of a class, e.g. {first}/old/er/000.png",
        f"{5 if given_splits else 1} .png: not in the folder of a class, e.g. {root}/loose.png",
        f"1 (no extension): not one of {', '.join(FORMATS)}, e.g. {root}/README",
    ]
    assert sorted(artifact.info["passed_over"]) == sorted(expected)
    printed = " ".join(capfd.readouterr().err.split())
    assert "these files are not read:" in printed
    assert all(line in printed for line in expected)
    output = validate(tmp_path / "store", tmp_path / "validation", settings).path
    page = (output / "report.html").read_text()
    assert "Files that are not read" in page
    assert all(line in page for line in expected)


def test_nothing_is_printed_if_every_file_is_read(tmp_path, pictures, capfd):
    assert prepare(folder_source(pictures), tmp_path / "store").info["passed_over"] == []
    assert "not read" not in capfd.readouterr().err


def test_a_folder_without_images_says_what_it_contains(tmp_path, capfd):
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "x.heic").write_bytes(b"x")
    with pytest.raises(DataError, match="no images"):
        prepare(folder_source(tmp_path / "root"), tmp_path / "store")
    assert "1 .heic: not one of" in capfd.readouterr().err


def test_linked_class_folders_are_read(tmp_path, pictures):
    (tmp_path / "root").mkdir()
    for folder in pictures.iterdir():
        (tmp_path / "root" / folder.name).symlink_to(folder)
    (pictures / "ant" / "x.txt").write_text("x")
    source = folder_source(tmp_path / "root")
    assert [line.partition(":")[0] for line in source.passed_over()] == ["1 .txt"]
    assert sum(source.open().rows.values()) == 45


def test_names_that_look_alike_are_named(tmp_path, capfd, settings):
    names = ["Dog", "dog", unicodedata.normalize("NFC", "ölkäfer"), "cat"]
    names.append(unicodedata.normalize("NFD", names[2]))
    for seed, name in enumerate(names):
        write_pictures(tmp_path / "root" / name, 10, seed=seed)
    prepare(folder_source(tmp_path / "root"), tmp_path / "store", workers=1)
    assert len(Store.open(tmp_path / "store").classes) == 5
    printed = " ".join(capfd.readouterr().err.split())
    assert "classes 'Dog', 'dog' differ only in case" in printed
    assert ascii(names[2]) in printed
    assert ascii(names[4]) in printed
    assert "cat" not in printed
    validate(tmp_path / "store", tmp_path / "validation", settings)
    report = json.loads((tmp_path / "validation" / "report.json").read_text())
    assert [w["check"] for w in report["warnings"]] == ["similar names"] * 2


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to itself"])
def test_what_is_not_a_file_is_named_instead_of_waiting(tmp_path, pictures, kind, monkeypatch):
    monkeypatch.chdir(pictures / "bee")  # the path of a socket must be short
    if kind == "pipe":
        os.mkfifo("x.png")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("x.png")
    else:
        os.symlink("/dev/zero" if kind == "device" else "x.png", "x.png")
    with pytest.raises(DataError, match="1 of 46 images cannot be read") as caught:
        prepare(folder_source(pictures), tmp_path / "store", workers=1)
    reason = "Too many levels" if kind == "link to itself" else "a pipe, socket or device"
    assert f"{pictures}/bee/x.png: {reason}" in str(caught.value)
    source = folder_source(pictures, on_bad_image="skip")
    assert prepare(source, tmp_path / "store", workers=1).info["skipped"]["count"] == 1


def test_key_depends_on_files_not_on_location(tmp_path, pictures):
    key = store_key(folder_source(pictures))
    pictures.rename(tmp_path / "moved")
    moved = folder_source(tmp_path / "moved")
    assert store_key(moved) == key
    os.utime(tmp_path / "moved/ant/000.png", ns=(0, 0))
    touched = store_key(moved)
    (tmp_path / "moved/ant/000.png").rename(tmp_path / "moved/ant/0000.png")  # the first still
    assert len({key, touched, store_key(moved)}) == 3


BAD = {"empty.png": b"", "text.jpg": b"hello", "cut.png": None, "no target.png": "link"}


@pytest.fixture
def with_bad(pictures):
    whole = (pictures / "bee" / "000.png").read_bytes()
    for name, content in BAD.items():
        if content == "link":
            (pictures / "bee" / name).symlink_to("nowhere")
        else:
            (pictures / "bee" / name).write_bytes(whole[:-30] if content is None else content)
    return pictures


def test_all_bad_pictures_are_named(tmp_path, with_bad):
    with pytest.raises(DataError, match="4 of 49 images cannot be read") as caught:
        prepare(folder_source(with_bad), tmp_path / "store", workers=1)
    for name in BAD:
        assert str(with_bad / "bee" / name) in str(caught.value)
    assert "0 bytes" in str(caught.value)
    assert "No such file" in str(caught.value)
    assert "on_bad_image=skip" in caught.value.remedy
    assert sorted(os.listdir(tmp_path)) == ["pictures"]


def test_bad_pictures_are_left_out_and_counted(tmp_path, with_bad, monkeypatch, capfd):
    monkeypatch.setattr("arcloop.data.sources.picture_listing._BLOCK_ROWS", 2)
    source = folder_source(with_bad, on_bad_image="skip", shard_rows=4)
    artifact = prepare(source, tmp_path / "store", workers=1)
    assert artifact.info["skipped"]["count"] == 4
    printed = capfd.readouterr().err
    assert "warning: 4 images cannot be read and are skipped:\n" in printed
    bad = {str(with_bad / "bee" / name) for name in BAD}
    *named, more = printed.partition("are skipped:\n")[2].splitlines()[:4]
    assert len({line.removeprefix("    ") for line in named} & bad) == 3
    assert more == "    and 1 more"
    assert sorted(artifact.info["skipped"]["names"]) == sorted(bad)
    store = Store.open(tmp_path / "store")
    assert sum(store.rows(split) for split in SPLITS) == 45
    expected = sorted(
        decode(path, height=6, width=4, channels=3).tobytes()
        for path in with_bad.glob("*/*.png")
        if path.name not in BAD
    )
    images = [rows_of(store, split)[0] for split in SPLITS]
    assert sorted(image.tobytes() for part in images for image in part) == expected
    assert sum(len(rows_of(store, split)[1]) for split in SPLITS) == 45
    for split, facts in artifact.info["splits"].items():
        assert all(rows == 4 for rows in facts["shards"][:-1])
        assert sum(facts["shards"]) == facts["rows"]
        origins = [
            np.load(file) for file in sorted((store.artifact.path / split).glob("origins-*"))
        ]
        assert [len(part) for part in origins] == facts["shards"]
        for image, origin in zip(rows_of(store, split)[0], np.concatenate(origins), strict=True):
            path = with_bad / origin["path"].decode()
            assert np.array_equal(image, decode(path, height=6, width=4, channels=3))


def test_only_bad_pictures(tmp_path, pictures):
    for path in pictures.glob("*/*"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"no image of .* can be read"):
        prepare(folder_source(pictures, on_bad_image="skip"), tmp_path / "store", workers=1)


def test_empty_folder(tmp_path):
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match="no images") as caught:
        prepare(folder_source(tmp_path / "root"), tmp_path / "store")
    assert "<root>/<class>/<image>" in caught.value.remedy


def test_class_without_pictures_is_named(tmp_path, pictures):
    (pictures / "moth").mkdir()
    write_pictures(pictures / "wasp", 1)
    with pytest.raises(DataError, match=r"class 'moth' \(0\), 'wasp' \(1\)"):
        prepare(folder_source(pictures), tmp_path / "store")


def test_missing_split_is_named(tmp_path):
    for split in ("train", "gallery"):
        write_pictures(tmp_path / "root" / split / "a", 3)
    with pytest.raises(DataError, match="missing in val, query"):
        store_key(folder_source(tmp_path / "root"))


def test_split_without_pictures_is_named(tmp_path):
    for split in SPLITS:
        write_pictures(tmp_path / "root" / split / "a", 0 if split == "val" else 3)
    with pytest.raises(DataError, match="no images in val"):
        prepare(folder_source(tmp_path / "root"), tmp_path / "store")


@pytest.mark.parametrize("size", [[1, 2, 3], []])
def test_image_size_must_have_two_numbers(tmp_path, size):
    with pytest.raises(ConfigError, match="image_size"):
        folder_source(tmp_path, image_size=size)


def test_class_name_that_is_not_utf8_is_escaped_on_every_page(tmp_path, pictures, settings):
    odd = os.fsdecode(os.fsencode(pictures) + b"/caf\xe9")
    try:
        write_pictures(Path(odd), 10)
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    prepare(folder_source(pictures), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.classes == ["ant", "bee", r"caf\xe9", "ölkäfer"]
    with pytest.raises(DataError, match="the same image as"):  # its path is on the page as well
        validate(tmp_path / "store", tmp_path / "validation", settings)
    page = (tmp_path / "validation/report.html").read_text(encoding="utf-8")
    assert r"caf\xe9" in page


def test_all_pictures_are_prepared_for_evaluation(tmp_path, pictures):
    prepare(folder_source(pictures, split="evaluation"), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.leave_one_out
    assert [store.rows(split) for split in SPLITS] == [0, 0, 45, 45]
    for split in ("query", "gallery", "train"):
        write_pictures(tmp_path / "root" / split / "a", 3)
    prepare(folder_source(tmp_path / "root", split="evaluation"), tmp_path / "given")
    given = Store.open(tmp_path / "given")
    assert not given.leave_one_out
    assert [given.rows(split) for split in SPLITS] == [0, 0, 3, 3]
