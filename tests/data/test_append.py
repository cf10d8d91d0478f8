"""Appending images to an existing store."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from arcloop import artifacts
from arcloop.data import SPLITS, Store, changes_since, prepare, store_key, validate
from arcloop.data.splits.apportionment import MIN_ROWS, apportion_new
from arcloop.data.splits.stratified import assign_new
from arcloop.data.store.source_files import (
    StoreContents,
    compare_files,
    hash_content,
    make_table,
)
from arcloop.errors import ArtifactError, ConfigError, DataError
from arcloop.runtime.images import decode

from .conftest import (
    csv_source,
    folder_source,
    idx_source,
    synthetic_source,
    write_idx_set,
    write_pictures,
)

SIZES = {"val": 0.2, "gallery": 0.2, "query": 0.2}


def place(stores, source):
    """Return the folder that the command line uses."""
    return stores / f"{source.name}-{store_key(source)}"


def append(stores, source, **more):
    return prepare(source, place(stores, source), append=True, workers=1, **more)


def rows_by_path(artifact):
    """Path of each picture -> its split, row and label; every image is decoded and compared."""
    store, found = Store(artifact), {}
    root = artifact.config["root"]
    for split in SPLITS[:-1] if store.leave_one_out else SPLITS:
        origins = [
            np.load(artifact.path / split / f"origins-{shard:05d}.npy")["path"]
            for shard in range(len(artifact.info["splits"][split]["shards"]))
        ]
        images, labels = store.gather(split, np.arange(store.rows(split)))
        for row, path in enumerate(os.fsdecode(p) for p in np.concatenate(origins)):
            assert (images[row] == decode(f"{root}/{path}", height=6, width=4, channels=3)).all()
            assert store.classes[labels[row]] == path.split("/")[-2]
            found[path] = split, row, int(labels[row])
    return found


@pytest.fixture
def stores(tmp_path):
    return tmp_path / "stores"


@pytest.fixture
def first(stores, pictures):
    return prepare(folder_source(pictures), place(stores, folder_source(pictures)), workers=1)


def test_stored_images_keep_split_row_and_label(stores, pictures, first):
    before = rows_by_path(first)
    write_pictures(pictures / "bat", 12, seed=7)
    write_pictures(pictures / "more", 9, seed=8)
    for number, path in enumerate(sorted((pictures / "more").iterdir())):
        path.rename(pictures / "ölkäfer" / f"{number}a.png")  # among the others, by name
    (pictures / "more").rmdir()
    grown = append(stores, folder_source(pictures))
    after = rows_by_path(grown)
    assert len(before) == 45
    assert len(after) == 66
    assert before.items() <= after.items()
    assert Store(grown).classes == ["ant", "bee", "ölkäfer", "bat"]
    assert grown.parents == {"store": first.sha256}
    assert sum(grown.info["appended"].values()) == 21
    of_bat = Counter(split for path, (split, _, _) in after.items() if path.startswith("bat"))
    assert of_bat == {"train": 5, "val": 3, "gallery": 2, "query": 2}
    # The next `prepare`, and hence `train`, without append=true finds it.
    assert prepare(folder_source(pictures), place(stores, folder_source(pictures))) == grown
    assert artifacts.load(first.path, "store", trust=False) == first


def test_old_shards_are_not_written_again(stores, pictures, first):
    stats = {name: (first.path / name).stat() for name in first.files}
    write_pictures(pictures / "bat", 12, seed=7)
    grown = append(stores, folder_source(pictures))
    for name, stat in stats.items():
        if name == "classes.json":
            continue
        now = (grown.path / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
        assert grown.files[name] == first.files[name]
    # Either may be removed without the other.
    subprocess.run(["rm", "-r", str(first.path)], check=True)
    assert artifacts.load(grown.path, "store", trust=False) == grown


def test_shards_are_copied_where_hard_links_are_not_supported(stores, pictures, first, monkeypatch):
    def refuse(self, target):
        raise PermissionError(1, "Operation not permitted")

    write_pictures(pictures / "bat", 12, seed=7)
    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    grown = append(stores, folder_source(pictures))
    assert (grown.path / "train/images-00000.npy").stat().st_nlink == 1
    assert artifacts.load(grown.path, "store", trust=False) == grown
    assert len(rows_by_path(grown)) == 57


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_several_appends(stores, pictures, encoding):
    """Shards of any size follow one another; each version names the one before."""
    source = folder_source(pictures, encoding=encoding, shard_rows=4)
    versions = [prepare(source, place(stores, source), workers=1)]
    images = [Store(versions[0])]
    for number in range(3):
        write_pictures(pictures / f"class {number}", 5 + number, seed=20 + number)
        versions.append(append(stores, source))
        images.append(Store(versions[-1]))
    assert [v.parents.get("store") for v in versions] == [None] + [v.sha256 for v in versions[:-1]]
    for old, new in itertools.pairwise(images):
        for split in SPLITS:
            rows = np.arange(old.rows(split))
            for before, after in zip(old.gather(split, rows), new.gather(split, rows), strict=True):
                assert (before == after).all()
    last = images[-1]
    assert len(last.classes) == 6
    assert sum(last.rows(split) for split in SPLITS) == 45 + 5 + 6 + 7
    for split in SPLITS:
        order = np.random.default_rng(0).permutation(last.rows(split))
        gathered, labels = last.gather(split, order)
        streamed = list(last.batches(split, 3))
        assert (np.concatenate([i for i, _ in streamed])[order] == gathered).all()
        assert (np.concatenate([l for _, l in streamed])[order] == labels).all()  # noqa: E741


def test_without_new_images_the_store_is_returned(stores, pictures, first):
    assert append(stores, folder_source(pictures)) == first
    (pictures / "notes.txt").write_text("about")
    assert append(stores, folder_source(pictures)) == first
    assert [p.name for p in stores.iterdir()] == [first.path.name]


def test_result_depends_only_on_store_and_source(tmp_path, stores, pictures, first):
    subprocess.run(["cp", "-a", str(stores), str(tmp_path / "other")], check=True)
    write_pictures(pictures / "bat", 12, seed=7)
    one = append(stores, folder_source(pictures))
    two = append(tmp_path / "other", folder_source(pictures))
    assert one.sha256 == two.sha256


def test_without_a_store_the_whole_source_is_prepared(stores, pictures, capfd):
    made = append(stores, folder_source(pictures))
    assert "no store contains images of this source" in capfd.readouterr().err
    assert made.files == prepare(folder_source(pictures), stores / "whole", workers=1).files


@pytest.mark.parametrize("other", [{"image_size": 8}, {"split_seed": 1}, {"encoding": "jpeg"}])
def test_a_store_of_other_settings_is_not_appended_to(stores, pictures, first, other):
    write_pictures(pictures / "bat", 12, seed=7)
    assert append(stores, folder_source(pictures, **other)).parents == {}


def test_a_store_of_other_images_is_not_appended_to(tmp_path, stores, first):
    for number, name in enumerate("ab"):
        write_pictures(tmp_path / "other" / name, 10, seed=30 + number)
    assert append(stores, folder_source(tmp_path / "other")).parents == {}


def remove(pictures):
    (pictures / "bee" / "003.png").unlink()
    (pictures / "ant" / "000.png").unlink()
    return "2 of its images were removed since:\n    ant/000.png\n    bee/003.png"


def change(pictures):
    os.utime(pictures / "ölkäfer" / "001.png", ns=(0, 0))
    return "1 of its images were changed since:\n    ölkäfer/001.png"


def rename(pictures):
    (pictures / "ant").rename(pictures / "ants")
    return "10 of its images were removed since:\n    ant/000.png"


@pytest.mark.parametrize("spoil", [remove, change, rename])
def test_a_source_that_lost_or_changed_images_is_refused(stores, pictures, first, spoil):
    write_pictures(pictures / "bat", 12, seed=7)
    message = spoil(pictures)
    with pytest.raises(DataError) as caught:
        append(stores, folder_source(pictures))
    assert message in str(caught.value)
    assert str(first.path) in str(caught.value.where)
    assert "prepare a new store without append=true" in caught.value.remedy
    assert [path.name for path in stores.iterdir()] == [first.path.name]


def test_a_damaged_store_is_refused(stores, pictures, first):
    write_pictures(pictures / "bat", 12, seed=7)
    os.truncate(first.path / "val/images-00000.npy", 300)
    with pytest.raises(ArtifactError, match=r"images-00000.npy has 300 bytes"):
        append(stores, folder_source(pictures))


@pytest.mark.parametrize("source", ["idx", "synthetic"])
def test_sources_without_files_of_their_own_are_refused(tmp_path, source):
    write_idx_set(tmp_path / "idx", train=60, test=20, end="")
    made = idx_source(tmp_path / "idx") if source == "idx" else synthetic_source()
    with pytest.raises(ConfigError, match="cannot be appended to") as caught:
        prepare(made, tmp_path / "store", append=True)
    assert "a new store is prepared" in caught.value.remedy


def swap(one, other):
    """Exchange two files without a change of size or modification time of either path."""
    third = one.with_name("third")
    one.rename(third)
    other.rename(one)
    third.rename(other)


def overwrite(one, other):
    one.write_bytes(other.read_bytes())
    os.utime(one, ns=(EQUAL_TIME, EQUAL_TIME))


def swap_folders(one, other):
    swap(one.parent, other.parent)


EQUAL_TIME = 10**18


@pytest.fixture
def of_equal_size(pictures):
    """BMP files of one size and modification time; ant and bee have files of the same names."""
    for number in range(10, 15):
        (pictures / "bee" / f"{number:03d}.png").unlink()
    for path in sorted(pictures.glob("*/*.png")):
        with Image.open(path) as image:
            image.save(path.with_suffix(".bmp"))
        path.unlink()
        os.utime(path.with_suffix(".bmp"), ns=(EQUAL_TIME, EQUAL_TIME))
    return pictures


@pytest.mark.parametrize("exchange", [swap, overwrite, swap_folders])
@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_other_images_of_equal_size_and_time_are_refused(stores, of_equal_size, exchange, kind):
    rows = in_folders(of_equal_size)
    source = folder_source(of_equal_size) if kind == "folder" else listed(of_equal_size, rows)
    store = prepare(source, place(stores, source), workers=1)
    assert prepare(source, place(stores, source)) == store
    exchange(of_equal_size / "ant/000.bmp", of_equal_size / "bee/000.bmp")
    assert store_key(source) == store.info["key"]  # before, the store was used again
    with pytest.raises(DataError, match="images are not those that this store") as caught:
        prepare(source, place(stores, source))
    assert "\n    ant/000.bmp" in str(caught.value)
    assert "touch" in caught.value.remedy
    assert changes_since(source, store).changed[0] == "ant/000.bmp"
    write_pictures(of_equal_size / "bat", 12, seed=7)
    if kind == "csv":
        source = listed(of_equal_size, in_folders(of_equal_size))
    with pytest.raises(DataError, match=r"of its images were changed since:\n    ant/000.bmp"):
        append(stores, source)
    for path in of_equal_size.glob("*/000.bmp"):  # as the remedy says
        os.utime(path)
    again = prepare(source, place(stores, source), workers=1)
    assert again.info["key"] != store.info["key"]


def test_a_copy_of_the_images_is_compared_once(tmp_path, stores, of_equal_size, capfd):
    source = folder_source(of_equal_size)
    store = prepare(source, place(stores, source), workers=1)
    subprocess.run(["cp", "-a", str(of_equal_size), str(tmp_path / "copy")], check=True)
    copy = folder_source(tmp_path / "copy")
    assert place(stores, copy) == place(stores, source)
    capfd.readouterr()
    assert prepare(copy, place(stores, copy)) == store
    assert "compared 40 files with the store: no image changed" in capfd.readouterr().err
    assert prepare(copy, place(stores, copy)) == store
    assert "compared" not in capfd.readouterr().err
    assert prepare(copy, place(stores, copy), full_check=True) == store
    assert "compared 40 files" in capfd.readouterr().err


def test_full_check_finds_what_inode_and_times_do_not_show(stores, of_equal_size):
    """A block device that is changed below the file system, or a clock that is set back."""
    source = folder_source(of_equal_size)
    store = prepare(source, place(stores, source), workers=1)
    file = of_equal_size / "bee/003.bmp"
    identities = store.path / ".identities.npy"
    overwrite(file, of_equal_size / "ant/003.bmp")
    contents = StoreContents.read(store)
    stat = file.stat()
    known = np.load(identities)
    known[contents.files["path"] == b"bee/003.bmp"] = stat.st_ino, stat.st_ctime_ns
    np.save(identities, known)
    assert prepare(source, place(stores, source)) == store
    with pytest.raises(DataError, match=r"1 images are not those.*\n    bee/003.bmp"):
        prepare(source, place(stores, source), full_check=True)


@pytest.mark.parametrize("damage", [b"", b"junk"])
def test_damaged_identities_lead_to_a_comparison(stores, of_equal_size, damage):
    source = folder_source(of_equal_size)
    store = prepare(source, place(stores, source), workers=1)
    (store.path / ".identities.npy").write_bytes(damage)
    assert prepare(source, place(stores, source)) == store
    assert np.load(store.path / ".identities.npy").shape == (40, 2)


def test_bad_pictures_are_tried_again(stores, pictures):
    whole = (pictures / "bee" / "000.png").read_bytes()
    (pictures / "bee" / "bad.png").write_bytes(b"x")
    source = folder_source(pictures, on_bad_image="skip")
    assert prepare(source, place(stores, source), workers=1).info["skipped"]["count"] == 1
    (pictures / "ant" / "bad.png").write_bytes(b"x")
    assert append(stores, source).info["skipped"]["count"] == 2
    (pictures / "bee" / "bad.png").write_bytes(whole)
    mended = append(stores, source)
    assert mended.info["skipped"]["count"] == 1
    assert sum(mended.info["appended"].values()) == 1
    assert "bee/bad.png" in rows_by_path(mended)


def test_split_folders_define_the_splits_of_new_images(tmp_path, stores):
    root = tmp_path / "root"
    for seed, split in enumerate(SPLITS):
        write_pictures(root / split / "b", 3, seed=seed)
    source = folder_source(root)
    before = rows_by_path(prepare(source, place(stores, source), workers=1))
    write_pictures(root / "query" / "a", 2, seed=50)
    write_pictures(root / "train" / "a", 1, seed=51)
    after = rows_by_path(append(stores, source))
    new = {path: row for path, row in after.items() if path not in before}
    assert before.items() <= after.items()
    assert new == {
        "query/a/000.png": ("query", 3, 1),
        "query/a/001.png": ("query", 4, 1),
        "train/a/000.png": ("train", 3, 1),
    }


def listed(pictures, rows):
    """Write a CSV list of (path, label, ...), and return a source of it."""
    file = pictures.parent / "list.csv"
    columns = ["path", "label", "split"][: len(rows[0])]
    file.write_text("\n".join(",".join(row) for row in [columns, *rows]) + "\n")
    return csv_source(file, root=str(pictures), name="pictures")


def in_folders(pictures):
    return [(str(p.relative_to(pictures)), p.parent.name) for p in sorted(pictures.glob("*/*"))]


def test_a_list_that_grew(stores, pictures):
    rows = in_folders(pictures)
    source = listed(pictures, rows)
    first = prepare(source, place(stores, source), workers=1)
    write_pictures(pictures / "bat", 12, seed=7)
    source = listed(pictures, in_folders(pictures)[::-1])
    before, after = rows_by_path(first), rows_by_path(append(stores, source))
    assert len(after) == len(before) + 12
    assert before.items() <= after.items()


@pytest.mark.parametrize("column", [1, 2], ids=["label", "split"])
def test_another_label_or_split_in_a_list_is_a_change(stores, pictures, column):
    splits = itertools.cycle(SPLITS)
    rows = [(*row, next(splits)) for row in in_folders(pictures)]
    source = listed(pictures, rows)
    prepare(source, place(stores, source), workers=1)
    other = ("", "bee", "val")
    rows[0] = (*rows[0][:column], other[column], *rows[0][column + 1 :])
    source = listed(pictures, rows)
    with pytest.raises(DataError, match=r"1 of its images were changed since:\n    ant/000.png"):
        append(stores, source)


@pytest.fixture
def by_class(stores, pictures):
    for number in range(5):
        write_pictures(pictures / f"c{number}", 6, seed=60 + number)
    source = folder_source(pictures, split="disjoint")
    return source, prepare(source, place(stores, source), workers=1)


def test_with_disjoint_splits_an_image_goes_to_the_split_of_its_class(stores, pictures, by_class):
    source, first = by_class
    before = rows_by_path(first)
    for number, name in enumerate(["ant", "bee", "c0", "c1", "c2", "c3", "c4"]):
        write_pictures(pictures / "more", 2, seed=80 + number)
        for path in (pictures / "more").iterdir():
            path.rename(pictures / name / f"a{path.name}")
        (pictures / "more").rmdir()
    grown = append(stores, source)
    after = rows_by_path(grown)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 14
    old, new = Store(first), Store(grown)
    assert new.leave_one_out
    assert new.num_train_classes == old.num_train_classes
    for split in SPLITS:
        assert set(new.labels(split)) == set(old.labels(split))
    assert new.rows("query") == new.rows("gallery") > old.rows("gallery")


def test_with_disjoint_splits_new_classes_are_refused(stores, pictures, by_class):
    write_pictures(pictures / "bat", 12, seed=7)
    with pytest.raises(
        DataError, match=r"added to this store: bat\. The classes of train have the first"
    ):
        append(stores, by_class[0])


def test_given_splits_without_a_class_in_common(tmp_path, stores):
    """A new class of gallery has the next label; one of train cannot have it."""
    root = tmp_path / "root"
    for seed, split in enumerate(("train", "val", "gallery")):
        write_pictures(root / split / f"of {split}", 3, seed=seed)
    source = folder_source(root, split="disjoint")
    prepare(source, place(stores, source), workers=1)
    write_pictures(root / "gallery" / "a", 2, seed=50)
    grown = Store(append(stores, source))
    assert grown.classes == ["of train", "of val", "of gallery", "a"]
    assert grown.num_train_classes == 1
    assert grown.labels("gallery").tolist() == [2, 2, 2, 3, 3]
    write_pictures(root / "train" / "b", 2, seed=51)
    with pytest.raises(DataError, match=r"added to this store: b\. "):
        append(stores, source)
    (root / "train" / "b").rename(root / "b")
    write_pictures(root / "query" / "of gallery", 2, seed=52)
    with pytest.raises(DataError, match="the source has images of query, but the store has none"):
        append(stores, source)


def test_new_classes_with_too_few_images_are_named(stores, pictures, first):
    write_pictures(pictures / "bat", 3, seed=7)
    write_pictures(pictures / "cat", 4, seed=8)
    (pictures / "dog").mkdir()
    with pytest.raises(
        DataError, match=r"too few images to split .*: class 'bat' \(3\), 'cat' \(4\), 'dog' \(0\)"
    ):
        append(stores, folder_source(pictures))


def test_new_classes_with_few_images_pass_validation(stores, pictures, first, tmp_path, settings):
    for number in range(4):
        write_pictures(pictures / f"new-{number}", 6, seed=10 + number)
    made = append(stores, folder_source(pictures))
    assert validate(made.path, tmp_path / "validation", settings).info["errors"] == 0


def test_killed_in_the_middle(tmp_path, stores, pictures):
    """The old store is complete, there is no new one, and the same command succeeds."""
    source = folder_source(pictures, image_size=64, encoding="jpeg")
    first = prepare(source, place(stores, source), workers=1)
    for number in range(60):
        write_pictures(pictures / f"c{number}", 8, seed=100 + number)
    script = tmp_path / "work.py"
    script.write_text(
        "from pathlib import Path\n"
        "from arcloop.data import ImageFolderSource, prepare\n"
        f"prepare({source!r}, Path({str(place(stores, source))!r}), append=True, workers=1)\n"
    )
    process = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(stores.glob(".*/train/jpeg-00001.npy")):  # something was encoded already
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert [p.name for p in stores.iterdir() if not p.name.startswith(".")] == [first.path.name]
    assert artifacts.load(first.path, "store", trust=False) == first
    grown = append(stores, source)
    assert sum(grown.info["appended"].values()) == 480
    assert [p.name for p in stores.iterdir() if p.name.startswith(".")] == []


# --- comparison of files, and splits of new images

PATHS = st.binary(min_size=1, max_size=4).filter(lambda path: not path.endswith(b"\0"))
FIELDS = ("size", "changed", "inode", "inode changed", "hash", "label", "split")
VERSIONS = st.tuples(*[st.integers(0, 2)] * len(FIELDS))


def of_dict(pictures):
    return list(pictures), np.array(list(pictures.values()), np.int64)


@given(
    st.dictionaries(PATHS, VERSIONS, min_size=1, max_size=12),
    st.dictionaries(PATHS, VERSIONS, min_size=1, max_size=12),
    st.booleans(),
)
def test_comparison_equals_that_of_two_dicts(then, now, full):
    now = now | {path: then[path] for path in list(then)[::2]}
    (paths, rows), versions = of_dict(then), of_dict(now)[1]
    files = make_table(paths, rows[:, :2], rows[:, 4])
    stored = StoreContents(files, rows[:, 5], rows[:, 6], rows[:, 2:4], [], 0, leave_one_out=False)
    changes = compare_files(
        stored,
        np.array(list(now), bytes),
        lambda n: versions[n, :4],
        lambda n: versions[n, 4],
        versions[:, 5],
        versions[:, 6],
        full=full,
    )

    def same_file(path):
        one, two = (dict(zip(FIELDS, of[path], strict=True)) for of in (then, now))
        if any(one[name] != two[name] for name in ("size", "changed", "label", "split")):
            return False
        if not full and all(one[name] == two[name] for name in ("inode", "inode changed")):
            return True
        return one["hash"] == two["hash"]

    same = {path for path in now if path in then and same_file(path)}
    assert changes.is_new.tolist() == [path not in then for path in now]
    assert changes.unchanged == len(same)
    text = lambda paths: sorted(p.decode("utf-8", "surrogateescape") for p in paths)  # noqa: E731
    assert sorted(changes.removed) == text(then.keys() - now.keys())
    assert sorted(changes.changed) == text((then.keys() & now.keys()) - same)
    assert changes.only_additions == (same == then.keys())


def test_source_files_of_every_row(first, pictures):
    stored = StoreContents.read(first)
    assert sorted(os.fsdecode(path) for path in stored.files["path"]) == sorted(
        str(path.relative_to(pictures)) for path in pictures.glob("*/*")
    )
    for (path, size, changed, digest), label in zip(
        stored.files.tolist(), stored.labels, strict=True
    ):
        assert digest == hash_content((pictures / os.fsdecode(path)).read_bytes())
        stat = (pictures / os.fsdecode(path)).stat()
        assert (size, changed) == (stat.st_size, stat.st_mtime_ns)
        assert stored.classes[label] == os.fsdecode(path).split("/")[0]
    assert stored.class_counts.tolist() == [[4, 2, 2, 2], [6, 3, 3, 3], [8, 4, 4, 4]]


@given(
    st.lists(st.integers(2, 9), min_size=4, max_size=4),
    st.integers(0, 6),
    st.tuples(*[st.sampled_from([0.1, 0.2, 0.25])] * 3),
)
def test_new_images_bring_a_class_closest_to_its_fractions(stored, new, shares):
    """No other division of the new images has a smaller sum of squared differences."""
    sizes = dict(zip(SIZES, shares, strict=True))
    given = apportion_new(np.array([new]), np.array([stored]), sizes)[0]
    assert given.sum() == new
    assert (given >= 0).all()
    rows = sum(stored) + new
    # Fractions that give fewer images than the minimum of a split are raised.
    wanted = [max(share * rows, MIN_ROWS[split]) for split, share in sizes.items()]
    ideal = np.array([rows - sum(wanted), *wanted])
    distance = lambda given: float(((np.array(stored) + given - ideal) ** 2).sum())  # noqa: E731
    ways = [w for w in itertools.product(range(new + 1), repeat=4) if sum(w) == new]
    assert distance(given) <= min(map(distance, ways)) + 1e-9


@given(st.lists(st.integers(5, 40), min_size=1, max_size=6), st.integers(0, 3))
def test_a_new_class_is_in_every_split(new, old_classes):
    old = np.repeat(np.arange(old_classes), 35)
    splits = np.tile(np.repeat(np.arange(4), [20, 5, 5, 5]), old_classes)
    classes = [str(number) for number in range(old_classes + len(new))]
    zeros = np.zeros((len(old), 2), np.int64)
    files = make_table([b""] * len(old), zeros, zeros[:, 0])
    known = classes[:old_classes]
    stored = StoreContents(files, old, splits, zeros, known, old_classes, leave_one_out=False)
    counts = np.array([0] * old_classes + new)
    given = stored.class_counts, classes
    labels = np.repeat(np.arange(len(counts)), counts)
    drawn = assign_new(labels, *given, sizes=SIZES, seed=0)
    for label in range(old_classes, len(counts)):
        per_split = np.bincount(drawn[labels == label], minlength=4)
        assert per_split.min() >= 1
        if (len(old) + sum(new)) * 0.2 >= 2 * len(counts) and counts[label] >= 5:
            assert per_split[1] >= 2
    assert (drawn == assign_new(labels, *given, sizes=SIZES, seed=0)).all()


def test_sizes_in_rows_are_reached_if_the_classes_allow():
    stored = np.array([[30, 3, 6, 6], [30, 3, 6, 6]])
    given = apportion_new(np.array([10, 10]), stored, {"val": 6, "gallery": 14, "query": 12})
    assert (stored + given).sum(axis=0).tolist() == [78, 6, 14, 12]
