"""Lineage from a model, index or evaluation to the images; every broken link is reported."""

import os
import shutil

import numpy as np
import pytest

from arcloop.cli.main import main
from arcloop.pipeline.lineage import trace
from arcloop.runtime.images import encode_png

RUN = "runs/synthetic"


def chain(link):
    """Return the kinds of a link and all its ancestors."""
    return [link.what.partition(" ")[0]] + [kind for p in link.parents for kind in chain(p)]


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("", {"run", "store", "source"}),
        ("/model.pt", {"runs/synthetic/model.pt", "run", "store", "source"}),
        ("/index/faiss_index.bin",
         {"runs/synthetic/index/faiss_index.bin", "index", "gallery", "model", "run", "store",
          "source"}),
        ("/evaluation", {"evaluation", "index", "gallery", "model", "run", "store", "source"}),
    ],
)  # fmt: skip
def test_lineage_contains_every_ancestor_up_to_the_source(work, path, kinds, capsys):
    link = trace(work.relative_to(work) / (RUN + path))
    assert set(chain(link)) == kinds
    assert main(["lineage", RUN + path]) == 0
    shown = capsys.readouterr().out
    assert "all links verified" in shown
    assert "git: " in shown
    assert "data=synthetic" in shown


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    stat = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    ("damaged", "path"),
    [
        ("index/faiss_index.bin", "index"),
        ("gallery/embeddings-00000.npy", "index"),
        ("model.pt", "index"),
        ("checkpoints/best.ckpt", "model.pt"),
    ],
)
def test_a_flipped_byte_in_an_ancestor_is_reported(work, damaged, path, capsys):
    """Size and modification time of the file do not change."""
    flip(work / RUN / damaged)
    assert main(["lineage", f"{RUN}/{path}"]) == 1
    shown = capsys.readouterr().out
    assert damaged.rpartition("/")[2] in shown
    assert "all links verified" not in shown


def test_a_missing_store_is_reported(work, capsys):
    shutil.rmtree(work / "stores")
    assert main(["lineage", RUN]) == 1
    assert "was not found" in capsys.readouterr().out


def test_an_index_of_another_gallery_is_reported(work, capsys):
    assert main(["embed", f"run_dir={RUN}", "embed.shard_rows=31"]) == 0
    assert main(["lineage", f"{RUN}/index"]) == 1
    assert "made from a different gallery" in capsys.readouterr().out


def test_a_changed_source_is_reported(in_tmp, capsys):
    draw = np.random.default_rng(0)
    for label in "ab":
        (in_tmp / "pictures" / label).mkdir(parents=True)
        for number in range(30):
            pixels = draw.integers(0, 256, (16, 16, 1), dtype=np.uint8)
            (in_tmp / f"pictures/{label}/{number}.png").write_bytes(encode_png(pixels))
    arguments = ["train", "data=image_folder", "data.root=pictures", "data.image_size=16",
                 "loader.batch_size=4", "trainer.max_epochs=1", "backbone.widths=[4,4]",
                 "callbacks=export_only", "run_dir=run", "data.channels=1",
                 "validation.min_images_per_class=1"]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    assert main(["lineage", "run"]) == 0
    (in_tmp / "pictures/a/0.png").write_bytes(b"other")
    assert main(["lineage", "run"]) == 1
    assert "changed after the store was prepared" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["nowhere", "stores", "broken.mar"])
def test_a_path_without_artifact_is_an_error(work, path, capsys):
    (work / "broken.mar").write_bytes(b"x")
    assert main(["lineage", path]) == 1
    error = capsys.readouterr().err
    assert path in error
    assert "Traceback" not in error


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"kind": "index"}', b"\xff"])
@pytest.mark.parametrize("damaged", ["", "/index", "/gallery"])
def test_a_damaged_manifest_is_reported_as_a_broken_link(work, damaged, content, capsys):
    (work / f"{RUN}{damaged}" / "manifest.json").write_bytes(content)
    assert main(["lineage", f"{RUN}/index"]) == 1
    shown = capsys.readouterr()
    assert f"{RUN}{damaged}" in shown.out
    assert "broken: " in shown.out
    assert "Traceback" not in shown.err


def test_the_store_is_found_from_another_directory(work, tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["lineage", str(work / RUN)]) == 0
    assert "all links verified" in capsys.readouterr().out
