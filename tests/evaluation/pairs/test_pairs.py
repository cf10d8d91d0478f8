"""Lists of given pairs: their files, their accuracy over folds, and `evaluate.pairs`."""

import contextlib
import csv
import glob
import io
import itertools
import json
import os
import pickle
import struct
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import KFold
from tests.conftest import SMALL
from tests.evaluation.conftest import settings

from arcloop.cli.main import main
from arcloop.config.evaluation import EvaluateSettings, GateSettings
from arcloop.data import Store
from arcloop.errors import ArcloopError, ConfigError
from arcloop.evaluation import check_gate
from arcloop.evaluation.pairs import open_pair_lists
from arcloop.evaluation.pairs.measure import pair_list_metrics, pair_similarities
from arcloop.pipeline.chains import find_store
from arcloop.retrieval import load_model

RUN = Path("runs/synthetic")
PAIRS = 60


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings: with the operations BINSTRING."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        short = len(value) < 256
        self.write(b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value)))
        self.write(value)
        self.memoize(value)

    dispatch[bytes] = save_string


def dump_2(content):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue()


def encode(pixels_HWC, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels_HWC.squeeze()).save(file, kind, **options)
    return file.getvalue()


def noise(count):
    """Encoded images of noise, of 300 bytes (kept in memory) and of 3 kB (read from the file)."""
    random = np.random.default_rng(0)
    sizes = [12 if number % 3 else 50 for number in range(count)]
    return [encode(random.integers(0, 256, (size, size), np.uint8)) for size in sizes]


def arrays(images):
    return [np.frombuffer(image, np.uint8) for image in images]


FLAGS = [number % 2 == 0 for number in range(12)]
FORMS = {
    **{f"protocol {p}": lambda i, p=p: pickle.dumps((i, FLAGS), p) for p in range(6)},
    "python 2": lambda i: dump_2((i, FLAGS)),
    "python 2 arrays": lambda i: dump_2((arrays(i), np.array(FLAGS))),
    "arrays": lambda i: pickle.dumps((arrays(i), np.array(FLAGS)), 5),
    "arrays of protocol 2": lambda i: pickle.dumps([arrays(i), np.array(FLAGS, int)], 2),
    "numpy bools": lambda i: pickle.dumps((i, list(np.array(FLAGS))), 4),
    "numbers": lambda i: pickle.dumps((i, [int(flag) for flag in FLAGS]), 4),
    "bytearrays": lambda i: pickle.dumps(([*map(bytearray, i)], FLAGS), 5),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_bin_file(tmp_path, form):
    images = noise(24)
    (tmp_path / "faces.bin").write_bytes(FORMS[form](images))
    (found,) = open_pair_lists([str(tmp_path / "faces.bin")])
    assert found.name == "faces"
    assert found.same.tolist() == FLAGS
    assert [found.read(number) for number in range(24)] == images
    assert found.sha256() == found.sha256()


class Call:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def bin_of(images, flags):
    return pickle.dumps((images, flags))


IMAGES = noise(24)
BAD = {
    "text": (b"path_1,path_2,same\n", "it is not a pickle"),
    "empty": (b"", "it is not a pickle: it ends too early"),
    "cut": (bin_of(IMAGES, FLAGS)[:5000], "it is not a pickle"),
    "system": (bin_of([Call(os.system, "touch executed")], FLAGS), "posix.system, which is not"),
    "codec": (bin_of([Call(__import__("codecs").encode, "a", "rot13")], FLAGS), "not a pickle"),
    "path": (bin_of([Path("a")] * 24, FLAGS), "it contains an object of pathlib"),
    "other": (pickle.dumps({"images": IMAGES}), "does not contain a list of images and a list"),
    "odd": (bin_of(IMAGES[1:], FLAGS), "an odd number of images: 23"),
    "flags": (bin_of(IMAGES, FLAGS[1:]), "it has 11 flags for 12 pairs"),
    "number": (bin_of(IMAGES, [2, *FLAGS[1:]]), "flag 1 is neither true nor false"),
    "float": (bin_of(IMAGES, np.ones(12)), "does not contain a list of images and a list"),
    "words": (bin_of([*IMAGES[:-1], "image"], FLAGS), "image 24 is not a string of bytes"),
    "few": (bin_of(IMAGES[:18], FLAGS[:9]), "it has 9 pairs, 5 of them of the same class"),
    "one kind": (bin_of(IMAGES, [True] * 12), "it has 12 pairs, 12 of them of the same class"),
    "image": (bin_of([*IMAGES[:-1], b"GIF8"], FLAGS), "image 24 of bad.bin: not an image"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_bin_file_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    content, message = BAD[name]
    Path("bad.bin").write_bytes(content)
    with pytest.raises(ArcloopError) as raised:
        open_pair_lists(["bad.bin"])[0].sha256()
    assert message in raised.value.what
    assert raised.value.where == Path("bad.bin")
    assert not Path("executed").exists()


@hypothesis.given(st.data())
def test_damaged_files_raise_our_errors(data):
    content = bytearray(bin_of(IMAGES[:20], np.array(FLAGS[:10])))
    places = [*range(80), *range(len(content) - 300, len(content))]  # lists, flags and opcodes
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.sampled_from(places))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "faces.bin")
        file.write_bytes(content)
        with contextlib.suppress(ArcloopError):
            open_pair_lists([str(file)])[0].sha256()


def write_list(file, images, flags):
    """Write images next to a CSV file that lists them."""
    rows = []
    for number, image in enumerate(images):
        path = file.parent / f"{file.stem}-{number}.png"
        path.write_bytes(image)
        rows.append(path.name)
    with open(file, "w", newline="", encoding="utf-8") as text:
        writer = csv.writer(text)
        writer.writerow(["note", "path_1", "path_2", "same"])
        writer.writerows(("x", *rows[2 * p : 2 * p + 2], int(f)) for p, f in enumerate(flags))
    return file


def test_a_csv_list_and_its_faults(tmp_path):
    file = write_list(tmp_path / "my pairs.csv", IMAGES, FLAGS)
    (found,) = open_pair_lists([str(file)])
    assert (found.name, found.same.tolist()) == ("my_pairs", FLAGS)
    assert [found.read(number) for number in range(24)] == IMAGES
    (tmp_path / "my pairs-3.png").write_bytes(b"nothing")
    with pytest.raises(ArcloopError, match=r"my pairs-3.png: not an image"):
        found.sha256()
    (tmp_path / "my pairs-3.png").unlink()
    lines = file.read_text("utf-8").splitlines()
    file.write_text("\n".join([*lines[:5], lines[5][:-1] + "yes", *lines[6:]]), "utf-8")
    with pytest.raises(ArcloopError, match=r"2 fault\(s\)") as raised:
        open_pair_lists([str(file)])
    assert "line 3: no such file: " in raised.value.what
    assert "line 6: same is 'yes', not 0 or 1" in raised.value.what
    file.write_text("a,b\n", "utf-8")
    with pytest.raises(ArcloopError, match="columns are missing: path_1, path_2, same"):
        open_pair_lists([str(file)])


def test_bounds_of_the_gate():
    measured = {"pairs_lfw_accuracy": 0.99, "pairs_cfp_fp_accuracy": 0.9}
    bounds = settings().gate
    for bound, passed in ((0.9, True), (0.95, False), ({"lfw": 0.95}, True), ({"agedb": 0}, False)):
        bounds.min_pair_list_accuracy = bound
        assert check_gate(measured, bounds)["passed"] == passed
    bounds.min_pair_list_accuracy = 0.9
    assert not check_gate({}, bounds)["passed"]


def test_names_of_lists():
    with pytest.raises(ConfigError, match="two lists with the name lfw"):
        EvaluateSettings(**vars(settings()) | {"pairs": ["a/lfw.bin", "b/lfw.bin"]})
    gate = settings().gate
    gate.min_pair_list_accuracy = {"lfv": 0.9}
    with pytest.raises(ConfigError, match="no list lfv") as raised:
        EvaluateSettings(**vars(settings()) | {"pairs": ["a/lfw.bin"], "gate": gate})
    assert "did you mean lfw" in str(raised.value)
    gate.min_pair_list_accuracy = 0.9
    with pytest.raises(ConfigError, match=r"evaluate.pairs is empty"):
        EvaluateSettings(**vars(settings()) | {"gate": gate})
    for wrong in (1.5, {"lfw": "high"}, True):
        with pytest.raises(ConfigError, match=r"must be null, a number from 0 to 1"):
            GateSettings(**vars(settings().gate) | {"min_pair_list_accuracy": wrong})


def field_accuracies(cosines, same):
    """Accuracy of each fold by the definition: all thresholds, on nine folds, by brute force."""
    accuracies = []
    for rest, test in KFold(10).split(cosines):
        levels = np.unique(cosines[rest])
        middles = [(low + high) / 2 for low, high in itertools.pairwise(levels)]
        thresholds = [levels[0], *middles]
        right = [((cosines[rest] >= t) == same[rest]).mean() for t in thresholds]
        best = thresholds[int(np.argmax(right))]
        accuracies.append(((cosines[test] >= best) == same[test]).mean())
    return accuracies


@pytest.mark.parametrize("count", [10, 64, 99])
def test_accuracy_over_folds_is_that_of_scikit_learn(count):
    random = np.random.default_rng(count)
    same = random.permutation(count) % 2 == 0
    cosines = np.clip(random.normal(0.3 * same, 0.2), -1, 1)
    metrics, expected = pair_list_metrics(cosines, same), field_accuracies(cosines, same)
    assert metrics["accuracy"] == pytest.approx(np.mean(expected))
    assert metrics["accuracy_std"] == pytest.approx(np.std(expected))


def test_error_rates_of_a_list():
    same = np.arange(6000) % 2 == 0
    metrics = pair_list_metrics(np.where(same, 0.5, 0.1), same)
    assert (metrics["eer"], metrics["tar_at_far_1e-2"]) == (0, 1)
    assert metrics["tar_at_far_1e-3"].startswith("not measurable with 3,000 pairs of different")
    assert pair_list_metrics(np.where(same, 0.1, 0.5), same)["eer"] == 1


@pytest.fixture(scope="module")
def drawn(finished, tmp_path_factory):
    """Pairs of query images in a .bin file (JPEG) and in a CSV list (PNG, with flags of noise)."""
    folder = tmp_path_factory.mktemp("pairs")
    images, labels = Store.open(find_store(finished / RUN)).gather("query", np.arange(70))
    random = np.random.default_rng(1)
    rows = random.integers(0, 70, 2 * PAIRS)
    flags = labels[rows[::2]] == labels[rows[1::2]]
    jpegs = [encode(images[row], "JPEG", quality=95) for row in rows]
    (folder / "faces.bin").write_bytes(dump_2((jpegs, flags.tolist())))
    write_list(folder / "mixed.csv", [encode(images[row]) for row in rows], flags[::-1])
    return folder, jpegs, [images[row] for row in rows], flags


def cosines_of(model, images, flip):
    rows = model.embed(np.stack(images)).astype(np.float64)
    if flip:
        rows += model.embed(np.stack([image[:, ::-1].copy() for image in images]))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows[::2] * rows[1::2]).sum(axis=1)


@pytest.mark.parametrize("flip", [True, False])
def test_evaluate_reports_every_list(work, drawn, capsys, flip):
    folder, jpegs, images, flags = drawn
    lists = f"evaluate.pairs=[{folder}/faces.bin,{folder}/mixed.csv]"
    bounds = "evaluate.gate.min_pair_list_accuracy=" + (
        "0.99" if flip else "{faces: 0.1, mixed: 0.99}"
    )
    command = ["evaluate", f"run_dir={RUN}", lists, bounds, "embed.batch_size=33"]
    assert main([*command, f"evaluate.pairs_flip={str(flip).lower()}"]) == 3
    metrics = json.loads((RUN / "evaluation/metrics.json").read_bytes())
    model = load_model(RUN / "model.pt", "cpu")
    decoded = [np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"))[..., None] for jpeg in jpegs]
    for name, pixels, same in (("faces", decoded, flags), ("mixed", images, flags[::-1])):
        cosines = cosines_of(model, pixels, flip)
        (found,) = open_pair_lists(glob.glob(f"{folder}/{name}.[bc]*"))
        measured = pair_similarities(model, found, 33, flip=flip)
        np.testing.assert_allclose(measured, cosines, atol=1e-5)
        assert np.abs(cosines - cosines_of(model, pixels, not flip)).max() > 1e-3
        expected = field_accuracies(cosines, same)
        # A float32 product may round a pair to the other side of a threshold.
        assert metrics[f"pairs_{name}_accuracy"] == pytest.approx(np.mean(expected), abs=1.5 / 60)
        assert 0 <= metrics[f"pairs_{name}_eer"] <= 1
    assert "pairs_faces_tar_at_far_1e-2" in metrics["not_measurable"]
    assert metrics["pairs_faces_accuracy"] > metrics["pairs_mixed_accuracy"]
    reasons = json.loads((RUN / "evaluation/gate.json").read_bytes())["reasons"]
    passed = any(r.startswith("pairs_faces_accuracy is") and "as required" in r for r in reasons)
    assert passed == (not flip)
    assert any(r.startswith("pairs_mixed_accuracy is") and "but at least" in r for r in reasons)
    assert "pairs_faces_accuracy │ " in capsys.readouterr().out
    page = (RUN / "evaluation/report.html").read_text("utf-8")
    assert "<b>faces</b>" in page
    assert "mixed: accuracy, std" in page
    if flip:
        assert main(["lineage", str(RUN / "evaluation")]) == 0
        assert f"ok pairs of {folder}/faces.bin" in capsys.readouterr().out
        assert main([*command, f"evaluate.gate.versus={RUN}"]) == 3
        changes = json.loads((RUN / "evaluation/versus.json").read_bytes())["metrics"]
        assert changes["pairs_faces_accuracy"]["difference"] == 0


def test_faults_are_reported_before_training(in_tmp, capsys):
    Path("cut.bin").write_bytes(bin_of(IMAGES, FLAGS)[:5000])
    for file, code in (("missing.bin", 2), ("cut.bin", 1)):
        assert main(["run", *SMALL, f"evaluate.pairs=[{file}]"]) == code
        assert file in capsys.readouterr().err
        assert not Path("stores").exists()
