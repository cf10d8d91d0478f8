"""RecordIO files, written here byte by byte as MXNet documents them (dmlc-core, recordio.h)."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from arcloop.data import RecordIoSource, Store, prepare, store_key
from arcloop.errors import DataError

MAGIC = struct.pack("<I", 0xCED7230A)
SETTINGS = {
    "name": "faces", "prefix": "train", "shard_rows": 7, "encoding": "raw", "jpeg_quality": 95,
    "image_size": [6, 4], "channels": 3, "max_value": 65535, "background": None,
    "resize": "stretch", "split": "disjoint", "val": 0.2, "gallery": 0.2, "query": 0.2,
    "val_classes": 2, "test_classes": 2, "split_seed": 0, "min_images": 0,
    "on_bad_image": "fail", "on_duplicate": "error",
}  # fmt: skip


def record(content, labels):
    """Return a record; content that contains the magic number is divided at it."""
    if len(labels) == 1:
        packed = struct.pack("<IfQQ", 0, labels[0], 0, 0)
    else:
        packed = struct.pack("<IfQQ", len(labels), 0.0, 0, 0)
        packed += struct.pack(f"<{len(labels)}f", *labels)
    packed += content
    parts, start = [], 0
    for place in range(0, len(packed) - 3, 4):  # only at aligned positions
        if packed[place : place + 4] == MAGIC:
            parts.append(packed[start:place])
            start = place + 4
    parts.append(packed[start:])
    written = b""
    for number, part in enumerate(parts):
        kind = 0 if len(parts) == 1 else 1 if number == 0 else 3 if number == len(parts) - 1 else 2
        written += MAGIC + struct.pack("<I", kind << 29 | len(part)) + part
        written += b"\0" * (-len(part) % 4)
    return written


def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue(), pixels


def write(folder, images, *, identities=True):
    """Write [(content, labels)] as InsightFace does, with records of the identities at the end."""
    records = [record(content, labels) for content, labels in images]
    if identities:
        first = [len(images) + 1.0, len(images) + 3.0]
        records = [record(b"", first), *records, record(b"", [1.0, 3.0]), record(b"", [3.0, 5.0])]
    positions = np.cumsum([0, *map(len, records)])[:-1]
    folder.mkdir(exist_ok=True)
    (folder / "train.rec").write_bytes(b"".join(records))
    lines = [f"{key}\t{position}\n" for key, position in enumerate(positions)]
    (folder / "train.idx").write_text("".join(lines[::-1]))  # in any order


def source(folder, **changed):
    return RecordIoSource(root=str(folder), **(SETTINGS | changed))


def stored(path):
    """Return pixels -> class name of a store."""
    store = Store.open(path)
    found = {}
    for split in ("train", "val", "gallery"):
        images, labels = store.gather(split, np.arange(store.rows(split)))
        names = [store.classes[label] for label in labels]
        found |= dict(zip(map(bytes, images), names, strict=True))
    return found


@pytest.mark.parametrize("identities", [True, False])
def test_images_and_labels(tmp_path, identities):
    pictures = [png(number) for number in range(24)]
    several = [number % 2 == 0 for number in range(24)]  # an array of labels, or one
    images = [
        (content, [float(n // 4), 7.0] if more else [float(n // 4)])
        for n, ((content, _), more) in enumerate(zip(pictures, several, strict=True))
    ]
    write(tmp_path, images, identities=identities)
    prepare(source(tmp_path), tmp_path / "store")
    expected = {pixels.tobytes(): str(n // 4) for n, (_, pixels) in enumerate(pictures)}
    assert stored(tmp_path / "store") == expected
    assert prepare(source(tmp_path), tmp_path / "store").info["key"] == store_key(source(tmp_path))


def test_a_record_in_several_parts(tmp_path):
    """The magic number in a text chunk of a PNG file, at an aligned position of the record."""
    images = []
    for number in range(24):
        content, _ = png(number)
        for padding in range(4):
            text = b"x\0" + b"." * padding + MAGIC * 2
            chunk = struct.pack(">I", len(text)) + b"tEXt" + text
            chunk += struct.pack(">I", __import__("zlib").crc32(b"tEXt" + text))
            joined = content[:33] + chunk + content[33:]  # after the header of 8 + 25 bytes
            if (24 + joined.index(MAGIC)) % 4 == 0:
                images.append((joined, [float(number // 4)]))
    assert len(images) == 24
    write(tmp_path, images)
    assert len((tmp_path / "train.rec").read_bytes().split(MAGIC)) > 3 * 24
    prepare(source(tmp_path), tmp_path / "store")
    expected = {png(number)[1].tobytes(): str(number // 4) for number in range(24)}
    assert stored(tmp_path / "store") == expected


def test_equal_pictures_and_unreadable_ones(tmp_path, capsys):
    images = [(png(number)[0], [float(number // 4)]) for number in range(24)]
    images[5] = (png(0)[0], [1.0])
    images[9] = (b"no image", [2.0])
    write(tmp_path, images)
    found = source(tmp_path, on_duplicate="drop", on_bad_image="skip")
    store = prepare(found, tmp_path / "store", workers=2)
    assert (store.info["dropped"]["count"], store.info["skipped"]["count"]) == (1, 1)
    assert f"{tmp_path}/train.rec at byte " in capsys.readouterr().err
    with pytest.raises(DataError, match=r"train.rec at byte \d+: not an image"):
        prepare(source(tmp_path), tmp_path / "other")


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        source(tmp_path).open()
    write(tmp_path, [(png(number)[0], [float(number // 4)]) for number in range(24)])
    content = (tmp_path / "train.rec").read_bytes()
    (tmp_path / "train.rec").write_bytes(content[:-300])
    with pytest.raises(DataError, match=r"byte \d+"):
        source(tmp_path).open()
    (tmp_path / "train.rec").write_bytes(b"?" + content[1:])
    with pytest.raises(DataError, match="no record at byte 0") as caught:
        source(tmp_path).open()
    assert str(tmp_path / "train.rec") in str(caught.value)
    (tmp_path / "train.idx").write_text("1 2 3\n")
    with pytest.raises(DataError, match="not a key and a position"):
        source(tmp_path).open()
