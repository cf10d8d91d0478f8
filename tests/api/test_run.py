"""`arcloop.fit` and `arcloop.load`, and what the run does with images of a caller."""

import errno
import io
import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from tests.conftest import SMALL

import arcloop
from arcloop.api import images as api_images
from arcloop.cli.main import main
from arcloop.errors import ArtifactError, ConfigError, DataError, ResourceError
from arcloop.runtime.images import encode_png


def grey_picture(path, size=(40, 30), seed=0):
    """Write a grey picture that is not of the model's size."""
    pixels = np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def reference_embedding(run_dir, path):
    """Resize with Pillow and call the TorchScript model, without the code of arcloop."""
    pixels = np.asarray(Image.open(path).resize((16, 16), Image.Resampling.BILINEAR))
    with torch.inference_mode():
        return torch.jit.load(run_dir / "model.pt")(torch.from_numpy(pixels.copy())[None, None])


def test_a_picture_has_the_embedding_of_the_scripted_model(work):
    run = arcloop.load("runs/synthetic")
    path = grey_picture(work / "a.png")
    embedding_ND = run.embed(path)
    assert embedding_ND.dtype == np.float32
    assert embedding_ND.shape == (1, 16)
    assert np.linalg.norm(embedding_ND) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(embedding_ND, reference_embedding(run.path, path), atol=1e-6)


def test_all_forms_of_an_image_have_the_same_embedding(work):
    run = arcloop.load("runs/synthetic")
    path = grey_picture(work / "a.png")
    content, pixels = path.read_bytes(), np.asarray(Image.open(path))
    transparent = np.dstack([pixels] * 3 + [np.full_like(pixels, 255)])
    forms = [
        str(path), path, content, Image.open(path), Image.open(io.BytesIO(content)), pixels,
        pixels[..., None], np.dstack([pixels] * 3), transparent,
    ]  # fmt: skip
    expected = run.embed(path)
    # The rounding depends on the size of the batch.
    np.testing.assert_allclose(run.embed(forms), expected.repeat(len(forms), axis=0), atol=1e-6)
    for form in forms:
        assert np.array_equal(run.embed(form), expected)
    several_NHWC = np.stack([pixels, pixels[::-1]])[..., None]
    assert np.array_equal(run.embed(several_NHWC), run.embed([pixels, pixels[::-1]]))
    assert run.embed([]).shape == (0, 16)


def test_an_exif_orientation_is_applied_to_an_image_of_pillow(work):
    run, path = arcloop.load("runs/synthetic"), grey_picture(work / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.open(path).save("turned.png", exif=exif)
    turned = Image.open("turned.png")
    assert np.array_equal(run.embed(turned), run.embed("turned.png"))
    assert np.abs(run.embed(turned) - run.embed(path)).max() > 1e-3
    assert turned.size == (40, 30)  # not changed


def test_golden_images_have_the_stored_embeddings(finished):
    run = arcloop.load(finished / "runs/synthetic")
    with np.load(run.path / "golden.npz") as golden:
        np.testing.assert_allclose(run.embed(golden["images"]), golden["embeddings"], atol=1e-6)


def test_an_iterable_is_read_one_batch_ahead_at_most(finished, monkeypatch):
    run = arcloop.load(finished / "runs/synthetic")
    monkeypatch.setattr(api_images, "_BATCH_ROWS", 4)
    read, embedded = [0], [0]
    embed = run.model.embed

    def counting_embed(batch_NHWC):
        embedded[0] += len(batch_NHWC)
        assert read[0] <= embedded[0] + 1
        return embed(batch_NHWC)

    def pictures():
        for number in range(10):
            read[0] += 1
            yield np.full((16, 16, 1), 20 * number, np.uint8)

    monkeypatch.setattr(run.model, "embed", counting_embed)
    assert run.embed(pictures()).shape == (10, 16)
    assert embedded == [10]


def test_few_undecoded_images_are_in_memory(finished, monkeypatch):
    monkeypatch.setattr(api_images.joblib, "cpu_count", lambda: 2)
    alive = []

    def pictures():
        for number in range(20):
            picture = Image.new("L", (40, 40), number)
            alive.append(weakref.ref(picture))
            assert sum(one() is not None for one in alive) <= 3
            yield picture

    assert arcloop.load(finished / "runs/synthetic").embed(pictures()).shape == (20, 16)


def test_answers_equal_a_brute_force_search_and_those_of_the_command(work, capsys):
    run = arcloop.load("runs/synthetic")
    pictures = [grey_picture(work / f"{n}.png", seed=n) for n in range(3)]
    gallery_GD = np.concatenate(
        [np.load(file) for file in sorted(run.path.glob("gallery/embeddings-*.npy"))]
    )
    labels_G = run.store.labels("gallery")
    answers = run.search(pictures, k=4)
    facts = json.loads((run.path / "index/faiss_label.json").read_text())
    for path, answer in zip(pictures, answers, strict=True):
        cos_G = (reference_embedding(run.path, path).numpy() @ gallery_GD.T)[0]
        best = np.argsort(-cos_G, kind="stable")[:4]
        assert [one.row for one in answer.neighbours] == best.tolist()
        np.testing.assert_allclose([one.similarity for one in answer.neighbours], cos_G[best],
                                   atol=1e-5)  # fmt: skip
        assert [one.label for one in answer.neighbours] == labels_G[best].tolist()
        assert answer.class_name == run.classes[labels_G[best[0]]]
        assert answer.threshold == facts["threshold"]
        assert answer.unknown == (cos_G[best[0]] < facts["threshold"])
    assert main(["query", *map(str, pictures), "--run", "runs/synthetic", "-k", "4", "--json"]) == 0
    for line, answer in zip(capsys.readouterr().out.splitlines(), answers, strict=True):
        printed = json.loads(line)
        assert printed["class_name"] == answer.class_name
        assert [n["row"] for n in printed["neighbours"]] == [n.row for n in answer.neighbours]
        assert printed["neighbours"][0].keys() == {"row", "label", "class_name", "similarity"}
        assert printed["threshold"]["similarity"] == answer.threshold


def test_the_run_of_a_project(shop):
    """`fit` used the head of the project, and reports the gate instead of raising an error."""
    assert shop.config["head"]["_target_"] == "shop.heads.RampedArcFace"
    assert shop.metrics["num_gallery"] == shop.store.rows("gallery")
    assert shop.gate["passed"] == (shop.metrics["top1"] == 1)
    assert sorted(shop.classes) == sorted(map(str, range(12)))
    recorded = json.loads((shop.path / "manifest.json").read_bytes())["info"]
    assert recorded["project"] == str(shop.path.parents[1])


def test_a_search_names_the_files_of_the_gallery(shop):
    root = shop.path.parents[1] / "pictures"
    file = shop.store.describe("gallery", 3)["file"]
    (answer,) = shop.search(root / file, k=2)
    nearest = answer.neighbours[0]
    assert nearest.similarity == pytest.approx(1, abs=1e-5)
    assert (nearest.row, nearest.file, nearest.class_name) == (3, file, Path(file).parent.name)
    assert answer.as_dict()["neighbours"][0]["file"] == file


def test_a_run_without_its_store_answers_without_files(shop, tmp_path):
    shutil.copytree(shop.path, tmp_path / "runs/shop")
    moved = arcloop.load(tmp_path / "runs/shop")
    file = next((shop.path.parents[1] / "pictures").glob("*/*.png"))
    assert moved.search(file, k=1)[0].neighbours[0].file is None
    with pytest.raises(ArtifactError, match=r"store of .* was not found"):
        _ = moved.store


def test_the_link_best_of_a_sweep_is_loaded_as_the_run(work):
    Path("runs/best").symlink_to("synthetic")
    assert arcloop.load("runs/best").path == work / "runs/synthetic"
    with pytest.raises(ArtifactError, match="folder of a sweep") as caught:
        arcloop.load("runs")
    assert str(work / "runs/best") in caught.value.remedy


def test_export_returns_a_file_that_equals_the_model(work):
    run = arcloop.load("runs/synthetic")
    file = run.export("onnx")
    assert file == run.path / "export/model.onnx"
    images_NHWC, _ = run.store.gather("query", np.arange(5))
    session = onnxruntime.InferenceSession(file)
    (embeddings_ND,) = session.run(
        None, {session.get_inputs()[0].name: images_NHWC.transpose(0, 3, 1, 2).copy()}
    )
    np.testing.assert_allclose(embeddings_ND, run.embed(images_NHWC), atol=1e-5)


def test_a_run_equals_itself_and_differs_from_another(work):
    run = arcloop.load("runs/synthetic")
    other = arcloop.fit([*SMALL, "head=softmax", "run_dir=runs/other"])
    for name, change in run.compare(other).comparison.metrics.items():
        expected = other.metrics[name] - run.metrics[name]
        assert change.difference == pytest.approx(expected, abs=1e-9)
    assert run.compare("runs/synthetic").comparison.negative_flips == 0
    assert "head._target_" in run.compare(str(other.path)).config
    with pytest.raises(ArtifactError, match="there is no run here"):
        run.compare("runs/none")


@pytest.mark.parametrize("index", [["--index"], []])
def test_a_pushed_folder_gives_the_answers_of_its_run(shop, tmp_path, monkeypatch, index):
    monkeypatch.chdir(shop.path.parents[1])
    assert main(["push", str(shop.path), "--to", str(tmp_path / "hub"), *index]) == 0
    pushed = arcloop.load(tmp_path / "hub", device="cpu")
    files = sorted(Path("pictures").glob("*/0.png"))
    np.testing.assert_allclose(pushed.embed(files), shop.embed(files), atol=1e-5)
    assert pushed.metrics["top1"] == shop.metrics["top1"]
    assert pushed.config["head"]["_target_"] == "shop.heads.RampedArcFace"
    if index:
        assert pushed.classes == shop.classes
        for found, expected in zip(pushed.search(files, 3), shop.search(files, 3), strict=True):
            assert found.class_name == expected.class_name
            assert found.threshold == expected.threshold
            assert found.neighbours[0].similarity == pytest.approx(
                expected.neighbours[0].similarity, abs=1e-5
            )
    else:
        with pytest.raises(ArtifactError, match="has no index") as caught:
            pushed.search(files)
        assert caught.value.remedy == "push the run with --index"
    for call, argument in ((pushed.export, "onnx"), (pushed.compare, shop), (shop.compare, pushed)):
        with pytest.raises(ArtifactError, match="this folder has a pushed model"):
            call(argument)


FLOATS = np.zeros((2, 16, 16, 1), np.float32)
GOOD = np.zeros((16, 16, 1), np.uint8)
NOT_IMAGES = {
    "a text file": (["a.png", "notes.txt"], "images[1]: notes.txt", "not an image in PNG"),
    "a missing file": ("none.png", "none.png", "no such file"),
    "damaged bytes": ([encode_png(GOOD)[:40]], "images[0]", "cannot be decoded"),
    "a float array": (FLOATS, "images[0]", "float32 array of shape [16, 16, 1]"),
    "an array of two channels": ([GOOD, np.zeros((4, 4, 2), np.uint8)], "images[1]", "[4, 4, 2]"),
    "an empty array": (np.zeros((0, 4, 3), np.uint8), "the image", "[0, 4, 3]"),
    "an image of floats": ([Image.new("F", (4, 4))], "images[0]", "floating-point"),
    "a tensor": ([torch.zeros(3, 4, 4)], "images[0]", "type Tensor"),
    "nothing": (None, "the image", "type NoneType"),
}


@pytest.mark.parametrize("case", NOT_IMAGES)
def test_what_is_no_image_is_named(work, case):
    grey_picture(work / "a.png")
    (work / "notes.txt").write_text("no image")
    given, where, what = NOT_IMAGES[case]
    with pytest.raises(DataError) as caught:
        arcloop.load("runs/synthetic").embed(given)
    assert what in caught.value.what
    assert caught.value.where == where


@pytest.mark.parametrize("k", [0, -1, 91, 1.5, "3", None])
def test_k_is_a_number_of_gallery_rows(finished, k):
    with pytest.raises(ConfigError, match="not an integer from 1 to 90"):
        arcloop.load(finished / "runs/synthetic").search(GOOD, k=k)


def damage(run_dir):
    (run_dir / "model.pt").write_bytes((run_dir / "model.pt").read_bytes()[:-1] + b"?")


def remove_index(run_dir):
    shutil.rmtree(run_dir / "index")


WRONG = {
    "no such folder": (lambda: arcloop.load("runs/none"), ArtifactError, "there is no run here"),
    "an index": (
        lambda: arcloop.load("runs/synthetic/index"), ArtifactError, "kind 'index', not 'run'"),
    "a file": (lambda: arcloop.load("runs/synthetic/model.pt"), ArtifactError, "no run here"),
    "an unknown device": (
        lambda: arcloop.load("runs/synthetic", device="abacus").model, ConfigError, "no device"),
    "an unknown format": (
        lambda: arcloop.load("runs/synthetic").export("zip"), ConfigError, "no export=zip"),
    "a text": (lambda: arcloop.fit("data=mnist"), ConfigError, "is a text"),
    "an unknown key": (lambda: arcloop.fit(["head.margn=1"]), ConfigError, "no key head.margn"),
    "a sweep": (lambda: arcloop.fit(["seed=0,1"]), ConfigError, "several values"),
    "no data": (lambda: arcloop.fit(["data=image_folder", "data.root=x"]), DataError, "x"),
    "a config folder that does not exist": (
        lambda: arcloop.fit([], config_dir="none"), ConfigError, "no such folder"),
    "a file as folder": (
        lambda: arcloop.fit(["data=synthetic", "run_dir=runs/synthetic/model.pt/x"]), ConfigError,
        "Not a directory"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_error_with_a_remedy(work, case):
    call, kind, what = WRONG[case]
    with pytest.raises(kind) as caught:
        call()
    assert what in str(caught.value)
    assert caught.value.remedy


def test_an_error_of_the_system_is_one_of_arcloop(in_tmp, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "stores/x")

    monkeypatch.setattr("arcloop.api.fitting.run_verb", full)
    with pytest.raises(ResourceError, match="No space left") as caught:
        arcloop.fit(["data=synthetic"])
    assert caught.value.where == "stores/x"


@pytest.mark.parametrize(
    ("change", "call", "what"),
    [
        (damage, lambda run: arcloop.load(run.path), "model.pt was changed"),
        (remove_index, lambda run: run.search(GOOD), "there is no index here"),
    ],
)
def test_a_run_that_is_damaged_or_has_no_index(work, change, call, what):
    run = arcloop.load("runs/synthetic")
    change(run.path)
    with pytest.raises(ArtifactError, match=what):
        call(run)


def test_a_run_without_index_embeds_and_has_classes(work):
    expected = arcloop.load("runs/synthetic").classes
    remove_index(work / "runs/synthetic")
    run = arcloop.load("runs/synthetic")
    assert run.embed(GOOD).shape == (1, 16)
    assert run.classes == expected
