"""Lists with boxes, landmarks and other columns, as CSV and as Parquet."""

import csv
import sys

import numpy as np
import pytest
from PIL import Image
from tests.data.conftest import csv_source, folder_source, write_pictures

from arcloop.data import SPLITS, Store, prepare, store_key
from arcloop.data.sources import list_rows
from arcloop.errors import DataError
from arcloop.runtime.regions import BOX, LANDMARKS

FACE = [2, 1, 4, 1, 3, 2, 2, 3, 4, 3]


@pytest.fixture
def sheets(tmp_path):
    """Pictures of two classes, and a list of their boxes in two files that contain all of them."""
    rows = []
    for number, label in enumerate(("ant", "bee")):
        write_pictures(tmp_path / "pictures" / label, 12, seed=number)
        files = sorted((tmp_path / "pictures" / label).iterdir())
        sheet = Image.new("RGB", (6 * 12, 4 + number))
        for place, file in enumerate(files):
            sheet.paste(Image.open(file), (6 * place, number))
            rows.append({"path": f"{label}.png", "label": label, "x_1": 6 * place, "y_1": number,
                         "x_2": 6 * place + 6, "y_2": 4 + number, "price": f"{place} €",
                         "split": SPLITS[place % 4]})  # fmt: skip
        sheet.save(tmp_path / f"{label}.png")
    return write(tmp_path / "list.csv", rows)


def write(file, rows):
    with open(file, "w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return file


def read(file):
    with open(file, newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def contents(path):
    store = Store.open(path)
    found = []
    for split in SPLITS:
        images, labels = store.gather(split, np.arange(store.rows(split)))
        found += [(i.tobytes(), store.classes[k]) for i, k in zip(images, labels, strict=True)]
    return sorted(found)


def refusal(file, **changed):
    with pytest.raises(DataError) as caught:
        prepare(csv_source(file, **changed), file.parent / "refused", workers=1)
    return caught.value


def test_boxes_are_the_pictures_that_were_cut_out(tmp_path, sheets):
    source = csv_source(sheets)
    prepare(source, tmp_path / "boxes", workers=2)
    prepare(folder_source(tmp_path / "pictures"), tmp_path / "whole", workers=1)
    assert contents(tmp_path / "boxes") == contents(tmp_path / "whole")
    store = Store.open(tmp_path / "boxes")
    for row in (0, 1, 5):  # the shards of the source have 7 rows; train has 3 of each class
        place = 4 * (row % 3)
        assert store.describe("train", row) == {
            "file": f"{['ant', 'bee'][row // 3]}.png"
            f"#box={6 * place},{row // 3},{6 * place + 6},{4 + row // 3}",
            "metadata": {"price": f"{place} €"},
        }
    identities = np.load(tmp_path / "boxes/.identities.npy")
    assert (identities[:, 0] > 0).all()  # the files are found again
    assert Store.open(tmp_path / "whole").describe("train", 0)["file"].startswith("ant/")


def test_another_box_is_another_store_and_a_new_one_can_be_appended(tmp_path, sheets):
    rows, key = read(sheets), store_key(csv_source(sheets))
    without = write(
        tmp_path / "without.csv", [{k: v for k, v in r.items() if k not in BOX} for r in rows]
    )
    assert store_key(csv_source(without)) != key
    prepare(csv_source(sheets), tmp_path / "stores/one", workers=1)
    write(sheets, [*rows, {**rows[0], "x_2": "5", "split": "gallery", "price": "new"}])
    assert store_key(csv_source(sheets)) != key
    store = prepare(csv_source(sheets), tmp_path / "stores/two", append=True, workers=1)
    assert store.info["appended"] == {"train": 0, "val": 0, "gallery": 1, "query": 0}
    assert Store(store).describe("gallery", 6)["metadata"] == {"price": "new"}
    assert Store(store).describe("gallery", 0)["metadata"] == {"price": "2 €"}
    write(sheets, [{**rows[0], "x_2": "4"}, *rows[1:]])
    with pytest.raises(DataError, match="removed since"):
        prepare(csv_source(sheets), tmp_path / "stores/three", append=True, workers=1)


def test_equal_crops_are_dropped_not_equal_files(tmp_path, sheets, capfd):
    rows = read(sheets)
    sheet = Image.open(tmp_path / "bee.png")
    sheet.paste(sheet.crop((0, 1, 6, 5)), (66, 1))
    sheet.save(tmp_path / "bee.png")
    store = prepare(csv_source(sheets, on_duplicate="drop"), tmp_path / "store", workers=1)
    assert sum(store.info["splits"][split]["rows"] for split in SPLITS) == len(rows) - 1
    assert store.info["dropped"]["names"] == [
        f"{tmp_path}/bee.png#box=66,1,72,5: the same picture as {tmp_path}/bee.png#box=0,1,6,5"
    ]


def test_faults_name_the_line_and_the_column(tmp_path, sheets):
    rows = read(sheets)
    changes = [{"x_1": "one"}, {"y_2": ""}, {"x_1": "18"}, {"y_1": "-3"}, dict.fromkeys(BOX, "")]
    write(sheets, [{**row, **change} for row, change in zip(rows, changes, strict=False)])
    assert refusal(sheets).what.splitlines() == [
        "the list of images has 4 fault(s):",
        "    line 2: x_1='one' is not a number",
        "    line 3: y_2='' is not a number",
        "    line 4: the box is empty: x_2=18 is not greater than x_1=18",
        "    line 5: y_1=-3 is outside the image",
    ]
    write(sheets, [*rows[:6], {**rows[5], "label": "bee"}, rows[5]])
    assert refusal(sheets).what.splitlines()[1:] == [
        "    line 8: ant.png#box=30,0,36,4 is 'bee', but 'ant' on line 7",
        "    line 9: ant.png#box=30,0,36,4 is already on line 7",
    ]


def test_a_box_that_ends_outside_names_file_line_and_column(tmp_path, sheets):
    rows = read(sheets)
    write(sheets, [rows[0], {**rows[1], "x_2": "73"}, *rows[2:]])
    assert refusal(sheets).what == (
        "1 of 24 images cannot be read:"
        f"\n    {tmp_path}/ant.png (line 3 of the list): x_2=73, but the image is 72 pixels wide"
    )
    store = prepare(csv_source(sheets, on_bad_image="skip"), tmp_path / "store", workers=1)
    assert store.info["skipped"]["names"] == [f"{tmp_path}/ant.png (line 3 of the list)"]
    assert Store(store).rows("val") == 5
    assert Store(store).describe("val", 0)["metadata"] == {"price": "5 €"}


def test_missing_columns_and_one_point(tmp_path, sheets):
    rows = read(sheets)
    error = refusal(write(tmp_path / "l.csv", [{k: v for k, v in row.items() if k != "y_2"}
                                               for row in rows]))  # fmt: skip
    assert "of the columns x_1, y_1, x_2, y_2, only x_1, y_1, x_2 are given" in error.what
    face = dict(zip(LANDMARKS, FACE, strict=True))
    error = refusal(write(tmp_path / "l.csv", [{**row, **face, "nose_x": ""} for row in rows]))
    assert "line 2: nose_x='' is not a number" in error.what
    error = refusal(write(tmp_path / "l.csv", [{**row, **dict.fromkeys(face, 3)} for row in rows]))
    assert "line 2: all landmarks are at one point" in error.what


def test_faces_of_one_file_are_different_images(tmp_path, sheets):
    """Landmarks are used instead of the box; a row without them is the box."""
    rows = read(sheets)
    faces = [
        {**row, **{name: 1 + 3 * number + value if name.endswith("_x") else value
                   for name, value in zip(LANDMARKS, FACE, strict=True)}}
        for number, row in enumerate(rows[:11])
    ] + [{**row, **dict.fromkeys(LANDMARKS, "")} for row in rows[11:]]  # fmt: skip
    prepare(csv_source(write(tmp_path / "f.csv", faces)), tmp_path / "faces", workers=1)
    store = Store.open(tmp_path / "faces")
    points = "3.0,1.0,5.0,1.0,4.0,2.0,3.0,3.0,5.0,3.0"
    assert store.describe("train", 0)["file"] == f"ant.png#landmarks={points}"
    assert store.describe("query", 2)["file"] == "ant.png#box=66,0,72,4"
    prepare(csv_source(sheets), tmp_path / "boxes", workers=1)
    images, boxes = (
        Store.open(tmp_path / name).gather("query", np.arange(6))[0] for name in ("faces", "boxes")
    )
    assert (images == boxes).all(axis=(1, 2, 3)).tolist() == [False, False, True, True, True, True]
    assert len(np.unique(images.reshape(6, -1), axis=0)) == 6


def test_parquet_is_the_csv(tmp_path, sheets, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    monkeypatch.setattr(list_rows, "_PARQUET_ROWS", 5)
    rows = [
        {**row, **{name: None if number == 3 else float(row[name]) for name in BOX}, "more": [1]}
        for number, row in enumerate(read(sheets))
    ]
    file = tmp_path / "list.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    as_csv = read(sheets)
    as_csv[3] |= dict.fromkeys(BOX, "")
    prepare(csv_source(file), tmp_path / "parquet", workers=1)
    prepare(csv_source(write(sheets, as_csv)), tmp_path / "csv", workers=1)
    assert contents(tmp_path / "parquet") == contents(tmp_path / "csv")
    one, two = (Store.open(tmp_path / name).describe("query", 3) for name in ("parquet", "csv"))
    assert one == two
    rows[6]["split"], rows[7]["x_1"] = "test", float("nan")
    pq.write_table(pa.Table.from_pylist(rows), file)
    assert refusal(file).what.splitlines()[1:] == [
        "    row 7: split 'test' is not one of train, val, gallery, query",
        "    row 8: x_1='' is not a number",
    ]
    file.write_bytes(b"PAR1")
    assert "it is not a Parquet file" in refusal(file).what


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "list.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    error = refusal(tmp_path / "list.parquet")
    assert error.what == "reading a Parquet file needs pyarrow"
    assert "pip install 'arcloop[parquet]'" in error.remedy
