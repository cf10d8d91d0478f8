"""Appending images to a store from the command line: run, add files, append, train again."""

import json
import shutil

import numpy as np
import pytest

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.data import Store
from arcloop.pipeline.chains import find_store
from arcloop.pipeline.lineage import trace
from arcloop.runtime.images import encode_png

DATA = ["data=image_folder", "data.root=pictures", "data.image_size=16", "data.channels=1",
        "data.encoding=jpeg", "data.shard_rows=32"]  # fmt: skip
TRAIN = [
    *DATA,
    "loader.batch_size=32",
    "trainer.max_epochs=1",
    "logger=csv",
    "evaluate.num_projected=0",
    "backbone.widths=[4,4]",
]


def draw(folder, name, numbers, seed):
    (folder / "pictures" / name).mkdir(parents=True, exist_ok=True)
    pattern = np.random.default_rng(seed).integers(0, 200, (16, 16, 1))
    for number in numbers:
        noise = np.random.default_rng([seed, number]).integers(0, 56, (16, 16, 1))
        file = folder / "pictures" / name / f"{number:03d}.png"
        file.write_bytes(encode_png((pattern + noise).astype(np.uint8)))


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """Decode in this process, because starting processes takes longer than decoding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.sched_getaffinity", lambda _: {0})
        yield


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """Make runs/old, append pictures and a class that sorts first, and make runs/new."""
    folder = tmp_path_factory.mktemp("grown")
    for seed, name in enumerate("bcd"):
        draw(folder, name, range(30), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", *TRAIN, "run_dir=runs/old"]) == 0
        before = {p.name for p in (folder / "stores").iterdir()}
        draw(folder, "a", range(20), 7)
        draw(folder, "c", range(30, 45), 1)
        assert main(["prepare", *DATA, "append=true"]) == 0
        assert main(["prepare", *DATA, "append=true"]) == 0
        assert main(["train", *TRAIN, "run_dir=runs/new"]) == 0
        after = {p.name for p in (folder / "stores").iterdir() if not p.name.startswith(".")}
        assert len(after - before) == 1
    return folder


@pytest.fixture
def work(grown, tmp_path, monkeypatch):
    # copy2 keeps the modification times, which are part of the fingerprint of the source.
    shutil.copytree(grown, tmp_path / "w", copy_function=shutil.copy2)
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


def kinds(link):
    return [link.what.partition(" ")[0], *(kind for p in link.parents for kind in kinds(p))]


def test_train_finds_the_appended_store(work):
    old, new = (
        artifacts.load(find_store(work / f"runs/{name}"), "store") for name in ("old", "new")
    )
    assert new.parents == {"store": old.sha256}
    assert json.loads((new.path / "classes.json").read_text()) == ["b", "c", "d", "a"]
    assert sum(new.info["appended"].values()) == 35
    run = artifacts.load(work / "runs/new", "run")
    assert run.parents["store"] == new.sha256


def test_a_query_names_the_file_of_each_neighbour(work, capsys):
    found = Store.open(find_store(work / "runs/new")).describe("gallery", 0)["file"]
    arguments = ["query", f"pictures/{found}", "--run", "runs/new", "-k", "2"]
    assert main([*arguments, "--json"]) == 0
    neighbours = json.loads(capsys.readouterr().out)["neighbours"]
    first = next(neighbour for neighbour in neighbours if neighbour["row"] == 0)
    assert first["file"] == found
    assert main(arguments) == 0
    assert f"│ {found}" in capsys.readouterr().out


def test_lineage_contains_both_stores(work, capsys):
    assert kinds(trace(work / "runs/new/index")).count("store") >= 2
    assert main(["lineage", "runs/new/model.pt"]) == 0
    shown = capsys.readouterr().out
    assert "all links verified" in shown
    for name in ("old", "new"):
        assert str(find_store(work / f"runs/{name}").name) in shown


def test_lineage_of_the_old_run_reports_added_and_removed_images(work, capsys):
    assert main(["lineage", "runs/old"]) == 0
    assert "new since: 35 images" in capsys.readouterr().out
    (work / "pictures/b/004.png").unlink()
    assert main(["lineage", "runs/old"]) == 1
    assert "1 removed: b/004.png" in capsys.readouterr().out


def test_a_flipped_byte_in_the_older_store_is_detected(work, capsys):
    file = find_store(work / "runs/old") / "val/labels-00000.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert main(["lineage", "runs/new"]) == 1
    assert "labels-00000.npy" in capsys.readouterr().out


def test_the_older_store_may_be_removed(work, capsys):
    shutil.rmtree(find_store(work / "runs/old"))
    assert main(["lineage", "runs/new"]) == 0
    assert "images were appended to it" in capsys.readouterr().out


def test_the_old_run_is_evaluated_as_before(work):
    before = (work / "runs/old/evaluation/metrics.json").read_bytes()
    for verb in ("embed", "index", "evaluate"):
        assert main([verb, "run_dir=runs/old"]) in (0, 3)
    assert (work / "runs/old/evaluation/metrics.json").read_bytes() == before


def test_appending_after_a_file_was_removed_is_an_error(work, capsys):
    (work / "pictures/b/004.png").unlink()
    draw(work, "d", [99], 3)
    assert main(["train", *TRAIN, "run_dir=runs/x", "append=true"]) == 1
    error = capsys.readouterr().err
    assert "1 of its images were removed since:\n    b/004.png" in error
    assert "prepare a new store without append=true" in error
    assert not (work / "runs/x").exists()


def test_appending_to_a_store_at_store_dir(work, capsys):
    """The new version is written to the same parent folder, in which the old one is found."""
    assert main(["prepare", *DATA, "store_dir=mine/v1"]) == 0
    draw(work, "d", range(60, 70), 3)
    assert main(["prepare", *DATA, "store_dir=mine/v1", "append=true"]) == 1
    assert "pass another store_dir in the same folder" in capsys.readouterr().err
    assert main(["prepare", *DATA, "store_dir=mine/v2", "append=true"]) == 0
    first, second = (artifacts.load(work / f"mine/v{n}", "store") for n in (1, 2))
    assert second.parents == {"store": first.sha256}


@pytest.mark.parametrize("choice", ["mnist", "synthetic"])
def test_append_to_an_unsupported_source_is_a_config_error(in_tmp, choice, capsys):
    assert main(["prepare", f"data={choice}", "append=true"]) == 2
    assert "cannot be appended to" in capsys.readouterr().err
    assert list(in_tmp.iterdir()) == []
