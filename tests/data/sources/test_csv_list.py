import csv
import itertools
import os
import subprocess
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from tests.data.conftest import csv_source, folder_source

from arcloop.config.composition import compose_config
from arcloop.data import SPLITS, Store, prepare, store_key
from arcloop.data.sources.csv_list import read_table
from arcloop.errors import ConfigError, DataError
from arcloop.runtime.images import decode

CELLS = {"ant": 10, "bee": 15, "ölkäfer": 20}


@pytest.fixture
def listed(pictures):
    """The pictures of the folder `pictures`, listed in random order in a file in that folder."""
    rows = [(f"{name}/{n:03d}.png", name) for name, count in CELLS.items() for n in range(count)]
    np.random.default_rng(3).shuffle(rows)
    return write(pictures / "list.csv", [("path", "label"), *rows])


def write(file, rows, **how):
    with open(file, "w", newline="", encoding="utf-8") as text:
        csv.writer(text, **how).writerows(rows)
    return file


def refusal(source):
    with pytest.raises(DataError) as caught:
        source.open()
    return caught.value


def contents(store):
    """Every image with the name of its class."""
    found = []
    for split in SPLITS:
        images, labels = store.gather(split, np.arange(store.rows(split)))
        found += [(i.tobytes(), store.classes[k]) for i, k in zip(images, labels, strict=True)]
    return sorted(found)


def test_a_listed_folder_is_the_folder(tmp_path, pictures, listed):
    prepare(csv_source(listed), tmp_path / "listed", workers=1)
    prepare(folder_source(pictures), tmp_path / "folder", workers=1)
    one, two = Store.open(tmp_path / "listed"), Store.open(tmp_path / "folder")
    assert one.classes == two.classes == sorted(CELLS)
    assert contents(one) == contents(two)
    for split in SPLITS:
        assert np.bincount(one.labels(split)).tolist() == np.bincount(two.labels(split)).tolist()


def test_rows_of_a_split_are_in_the_order_of_the_file(tmp_path, pictures):
    rows = [
        (f"{name}/{number:03d}.png", f" label of {name} ", SPLITS[number % 4])
        for number in (7, 2, 5, 0, 3, 1, 4, 6)
        for name in ("bee", "ant")
    ]
    file = write(tmp_path / "l.csv", [("label", "split", "path", "more"),
                                      *[(lab, s, p, "x") for p, lab, s in rows]])  # fmt: skip
    prepare(csv_source(file, root=str(pictures)), tmp_path / "store", workers=1)
    store = Store.open(tmp_path / "store")
    assert store.classes == ["label of ant", "label of bee"]
    for split in SPLITS:
        images, labels = store.gather(split, np.arange(store.rows(split)))
        expected = [(pictures / path, label) for path, label, s in rows if s == split]
        assert [store.classes[label] for label in labels] == [name.strip() for _, name in expected]
        for image, (path, _) in zip(images, expected, strict=True):
            assert (image == decode(path, height=6, width=4, channels=3)).all()


@pytest.mark.parametrize("kind", ["relative to root", "relative to the file", "absolute"])
def test_folder_that_relative_paths_start_from(tmp_path, pictures, listed, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    header, *rows = csv.reader(listed.read_text(encoding="utf-8").splitlines())
    if kind == "relative to root":
        source = csv_source(write(tmp_path / "l.csv", [header, *rows]), root="pictures")
    elif kind == "absolute":
        rows = [(str(pictures / path), label) for path, label in rows]
        source = csv_source(write(tmp_path / "l.csv", [header, *rows]))
    else:
        source = csv_source("pictures/list.csv")
    assert sum(source.open().rows.values()) == 45


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_byte_order_mark_and_other_delimiters(tmp_path, listed, delimiter):
    text = listed.read_text(encoding="utf-8").replace(",", delimiter)
    listed.write_text("\ufeff" + text + "\n\n", encoding="utf-8")
    assert sum(csv_source(listed, delimiter=delimiter).open().rows.values()) == 45
    error = refusal(csv_source(listed))
    header = f"path{delimiter}label"
    assert error.what == (
        f"column path is missing; column label is missing; the columns are: {header!r}"
    )
    word = error.remedy.removeprefix("pass ")
    argument = subprocess.check_output(["bash", "-c", f"printf %s {word}"], text=True)
    data = compose_config(["data=csv", "data.file=x", argument]).data
    assert sum(csv_source(listed, delimiter=data.delimiter).open().rows.values()) == 45


def test_an_index_column_quotes_and_ends_of_lines_of_windows(tmp_path):
    """As written by `DataFrame.to_csv` and by spreadsheets."""
    names = ['say "a", b.png', "line\nbreak\r\n.png", " plain.png", "x;y.png"]
    for number, name in enumerate(names):
        Image.new("RGB", (6, 4), (50 * number, 9, 9)).save(tmp_path / name)
    rows = [
        (number, name, 'the "first", class', "x", split)
        for number, (name, split) in enumerate(zip(names, SPLITS, strict=True))
    ]
    for quoting, end in itertools.product((csv.QUOTE_MINIMAL, csv.QUOTE_ALL), ("\n", "\r\n")):
        file = write(
            tmp_path / "l.csv",
            [("", "path", "label", "note", "split"), *rows],
            quoting=quoting,
            lineterminator=end,
        )
        listing = csv_source(file).open()
        assert listing.classes == ['the "first", class']
        assert {listing.files.relative(n).decode() for n in range(4)} == set(names)


def test_all_faults_are_reported_at_once_with_their_lines(tmp_path, pictures):
    rows = [
        ("path", "label", "split"),
        ("ant/000.png", "ant", "train"),
        ("ant/nope.png", "ant", "train"),
        ("ant/001.png", "", "train"),
        ("ant/002.png", "ant", "trian"),
        ("ant/../ant/000.png", "ant", "val"),
        ("ant/000.png", "bee", "train"),
        ("", "bee", "train"),
        ("bee/000.png",),
        ("bee", "bee", "query"),
        ("bee/001.png", "bee", ""),
    ]
    file = write(pictures / "l.csv", rows)
    error = refusal(csv_source(file))
    assert error.where == file.absolute()
    assert str(error).splitlines()[:-2] == [
        "the list of images has 9 fault(s):",
        f"    line 3: there is no file {pictures}/ant/nope.png",
        "    line 4: the label is empty",
        "    line 5: split 'trian' is not one of train, val, gallery, query; did you mean train?",
        "    line 6: ant/../ant/000.png is already on line 2",
        "    line 7: ant/000.png is 'bee', but 'ant' on line 2",
        "    line 8: the path is empty",
        "    line 9: has another number of cells than line 1",
        f"    line 10: there is no file {pictures}/bee",
        "    line 11: split '' is not one of train, val, gallery, query",
    ]


def test_many_faults_of_a_kind_are_counted(pictures):
    rows = [("path", "label"), *[(f"ant/no{n}.png", "ant") for n in range(50)], ("ant/000.png", "")]
    message = str(refusal(csv_source(write(pictures / "l.csv", rows))))
    assert "has 51 fault(s)" in message
    assert message.count("there is no file") == 20
    assert "and 30 more missing files" in message
    assert "line 52: the label is empty" in message


def test_a_line_of_a_row_over_several_lines(pictures):
    file = pictures / "l.csv"
    file.write_text('path,label,note\nant/000.png,ant,"a\nb"\nant/x.png,ant,\n')
    assert "line 4: there is no file" in str(refusal(csv_source(file)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,class\na,b\n", "column label is missing; the columns are: 'path', 'class'"),
        (b"path,label,path\n", "column path occurs twice"),
        (b"", "column path is missing; column label is missing; the columns are: none"),
        (b"path,label\n", "it lists no images"),
        (b"path,label\n\xff\xfe,x\n", "not text in UTF-8"),
        (b'path,label\n"' + b"x" * 200_000 + b'",x\n', "not CSV: field larger"),
    ],
)
def test_a_file_that_is_not_a_list(tmp_path, content, message):
    (tmp_path / "l.csv").write_bytes(content)
    assert message in str(refusal(csv_source(tmp_path / "l.csv")))


def test_no_file_and_no_root(tmp_path, listed):
    assert "there is no such file" in str(refusal(csv_source(tmp_path / "no.csv")))
    assert "no such folder" in str(refusal(csv_source(listed, root=str(tmp_path / "no"))))
    with pytest.raises(ConfigError, match=r"data\.delimiter=';;'"):
        csv_source(listed, delimiter=";;")


def test_a_split_without_images(pictures):
    rows = [("path", "label", "split"), ("ant/000.png", "a", "train"), ("ant/001.png", "a", "val")]
    assert "no images in gallery, query" in str(
        refusal(csv_source(write(pictures / "l.csv", rows)))
    )


def test_key_follows_the_list_and_the_files_not_their_place(tmp_path, pictures, listed):
    keys = [store_key(csv_source(listed))]
    pictures.rename(tmp_path / "moved")
    moved = csv_source(tmp_path / "moved/list.csv")
    assert store_key(moved) == keys[0]
    assert store_key(csv_source(listed.parent.parent / "moved/list.csv", val=0.3)) != keys[0]
    os.utime(tmp_path / "moved/ant/000.png", ns=(0, 0))
    keys.append(store_key(moved))
    text = (tmp_path / "moved/list.csv").read_text(encoding="utf-8")
    (tmp_path / "moved/list.csv").write_text(text.replace("bee/", "./bee/"), encoding="utf-8")
    keys.append(store_key(moved))
    (tmp_path / "moved/ant/000.png").unlink()
    keys.append(store_key(moved))
    assert len(set(keys)) == 4


def test_bad_pictures_fail_or_are_left_out(tmp_path, pictures, listed):
    (pictures / "bee/003.png").write_bytes(b"x")
    with pytest.raises(DataError, match="1 of 45 images cannot be read"):
        prepare(csv_source(listed), tmp_path / "store", workers=1)
    artifact = prepare(csv_source(listed, on_bad_image="skip"), tmp_path / "store", workers=1)
    assert artifact.info["skipped"] == {"count": 1, "names": [str(pictures / "bee/003.png")]}


def test_a_long_list_takes_little_memory_for_a_row(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    few, many = 2_000, 12_000
    peaks = []
    for rows in (few, many):
        folder = tmp_path / str(rows)
        folder.mkdir()
        for row in range(rows):
            os.link(tmp_path / "a.png", folder / f"{row}.png")
        named = [(f"{rows}/{row}.png", row % 7) for row in range(rows)]
        file = write(tmp_path / f"{rows}.csv", [("path", "label"), *named])
        tracemalloc.start()
        table = read_table(file, tmp_path, ",")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert table.files.path(rows - 1) == str(tmp_path / named[-1][0])
    assert (peaks[1] - peaks[0]) / (many - few) < 120  # bytes; a str alone takes 60
