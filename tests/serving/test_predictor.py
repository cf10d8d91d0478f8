"""The predictor of an unpacked archive."""

import io
import json
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import yaml
from PIL import Image

from arcloop.runtime import predictor
from arcloop.runtime.images import encode_png
from arcloop.runtime.predictor import ArchiveError, Predictor, PredictRequest
from arcloop.runtime.searcher import Model, Searcher, read_index, read_labels
from arcloop.serving.archive import collect, write_archive


@pytest.fixture(scope="module")
def unpacked(small_run, make_settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    settings = make_settings(folder / "store", max_pixels=4096, max_k=20)
    contents = collect(small_run, settings, force=False)
    archive = write_archive(contents, folder, contents.new_version())
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder / "unpacked")
    return folder / "unpacked"


def handler_settings(folder):
    return yaml.safe_load((folder / "model-config.yaml").read_bytes())["handler"]


@pytest.fixture(scope="module")
def running(unpacked):
    return Predictor(unpacked, handler_settings(unpacked))


@pytest.fixture(scope="module")
def golden(small_run):
    return np.load(small_run / "golden.npz")["images"]


def body(response):
    return json.loads(response.body)


def test_answers_agree_with_the_stored_embeddings(running, golden, small_run):
    """Compared with an exact search over the stored embeddings in float64."""
    stored = np.load(small_run / "golden.npz")["embeddings"].astype(np.float64)
    gallery = np.load(small_run / "gallery/embeddings-00000.npy").astype(np.float64)
    labels = np.load(small_run / "gallery/labels-00000.npy")
    classes = json.loads((small_run / "index/faiss_label.json").read_text())["classes"]
    responses = running.predict([PredictRequest(encode_png(image), "3") for image in golden])
    for response, embedding in zip(responses, stored, strict=True):
        cosines = gallery @ embedding
        nearest = np.argsort(-cosines)[:3]
        answer = body(response)
        assert response.status == 200
        assert [n["row"] for n in answer["neighbours"]] == nearest.tolist()
        np.testing.assert_allclose(
            [n["similarity"] for n in answer["neighbours"]], cosines[nearest], atol=1e-5
        )
        assert answer["label"] == labels[nearest[0]]
        assert answer["class_name"] == classes[labels[nearest[0]]]
        assert answer["unknown"] in (True, False)


def test_an_answer_names_its_model(running, golden, unpacked):
    (response,) = running.predict([PredictRequest(encode_png(golden[0]))])
    manifest = json.loads((unpacked / "manifest.json").read_text())
    assert body(response)["model"] == {
        "name": "synthetic",
        "version": manifest["version"],
        "runtime": "torchscript",
    }
    assert body(response)["lineage"] == manifest["parents"]
    labels = json.loads((unpacked / "faiss_label.json").read_text())
    assert body(response)["threshold"] == {
        "similarity": labels["threshold"],
        "far": labels["calibration"]["far"],
        "protocol": "trained classes",
    }
    assert len(body(response)["neighbours"]) == 5


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_an_invalid_image_gets_a_reason_and_does_not_affect_its_batch(running, golden):
    good = [PredictRequest(encode_png(image)) for image in golden[:4]]
    bad = {
        "empty": PredictRequest(b""),
        "not an image": PredictRequest(b"hello"),
        "cannot be decoded": PredictRequest(good[0].image[:-40]),
        "10,000 pixels; at most 4,096": PredictRequest(saved(Image.new("L", (100, 100)), "PNG")),
        "k='0' must be": PredictRequest(good[0].image, "0"),
        "k='21' must be a number from 1 to 20": PredictRequest(good[0].image, "21"),
        "k='-1'": PredictRequest(good[0].image, "-1"),
        "k='9999": PredictRequest(good[0].image, "9" * 5000),
        "k='nan'": PredictRequest(good[0].image, "nan"),
    }
    mixed = [*bad.values()]
    for place, request in zip((0, 3, 7, len(mixed)), good, strict=True):
        mixed.insert(place, request)
    responses = dict(zip(map(id, mixed), running.predict(mixed), strict=True))
    alone = [running.predict([request])[0] for request in good]
    for request, expected in zip(good, alone, strict=True):
        found = responses[id(request)]
        assert found.status == 200
        np.testing.assert_allclose(
            body(found)["similarity"], body(expected)["similarity"], atol=1e-5
        )
        assert body(found)["neighbours"][0]["row"] == body(expected)["neighbours"][0]["row"]
    for reason, request in bad.items():
        assert responses[id(request)].status == 400
        assert reason in body(responses[id(request)])["error"]


def test_each_request_gets_its_own_number_of_neighbours(running, golden):
    responses = running.predict([PredictRequest(encode_png(golden[0]), str(k)) for k in (1, 20, 7)])
    assert [len(body(response)["neighbours"]) for response in responses] == [1, 20, 7]


def test_an_empty_batch(running):
    assert running.predict([]) == []


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "L"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "RGBA"), ("PNG", "I;16"),
     ("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("BMP", "RGB")],
)  # fmt: skip
def test_formats_and_modes(running, kind, mode):
    image = Image.linear_gradient("L").resize((30, 20))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    (response,) = running.predict([PredictRequest(saved(image.convert(mode), kind))])
    assert response.status == 200


@pytest.mark.parametrize(
    "name",
    ["model.pt", "faiss_index.bin", "faiss_label.json", "faiss_label.npy",
     "arcloop_runtime/images.py", "golden.npz", "model-config.yaml"],
)  # fmt: skip
def test_a_changed_part_is_rejected(unpacked, tmp_path, name):
    folder = shutil.copytree(unpacked, tmp_path / "copy")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArchiveError, match=f"{name} has changed"):
        Predictor(folder, handler_settings(unpacked))


def test_another_folder_is_not_an_archive(tmp_path):
    with pytest.raises(ArchiveError, match="is not an unpacked archive"):
        predictor.verify_hashes(tmp_path)


def test_an_archive_that_fails_the_parity_check_is_rejected(unpacked, tmp_path):
    folder = with_golden(shutil.copytree(unpacked, tmp_path / "copy"), lambda e: -e)
    with pytest.raises(ArchiveError, match="the archive fails the parity check"):
        Predictor(folder, handler_settings(folder))


def with_golden(folder, change):
    """Replace the golden embeddings and their hash in the manifest."""
    import hashlib

    with np.load(folder / "golden.npz") as stored:
        np.savez(folder / "golden.npz", images=stored["images"],
                 embeddings=change(stored["embeddings"]))  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    sha256 = hashlib.sha256((folder / "golden.npz").read_bytes()).hexdigest()
    manifest["files"]["golden.npz"]["sha256"] = sha256
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_memory_mapped_index_gives_the_same_answers(unpacked, running, golden):
    mapped = Predictor(unpacked, handler_settings(unpacked) | {"memory_map": True})
    requests = [PredictRequest(encode_png(image)) for image in golden]
    assert mapped.predict(requests) == running.predict(requests)


def test_the_archived_code_runs_without_arcloop(unpacked, golden, tmp_path):
    (tmp_path / "image.png").write_bytes(encode_png(golden[0]))
    code = (
        "import sys; sys.modules['arcloop'] = None\n"
        "import yaml; from pathlib import Path\n"
        "from arcloop_runtime.predictor import PredictRequest, Predictor\n"
        "from arcloop_runtime import images; assert images.__file__.startswith(str(Path.cwd()))\n"
        "settings = yaml.safe_load(open('model-config.yaml'))['handler']\n"
        f"image = Path({str(tmp_path / 'image.png')!r}).read_bytes()\n"
        "print(Predictor(Path('.'), settings).predict([PredictRequest(image)])[0].body.decode())"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=unpacked, check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert json.loads(done.stdout)["model"]["name"] == "synthetic"


def test_a_folder_called_images_does_not_shadow_the_decoder(unpacked, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "__init__.py").write_text("raise RuntimeError('not the decoder')")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import arcloop_runtime.predictor"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, tmp_path], cwd=unpacked, check=True)


def test_predictor_and_searcher_give_the_same_answers(unpacked, running, golden):
    index, labels = (unpacked / name for name in ("faiss_index.bin", "faiss_label.json"))
    searcher = Searcher(Model(unpacked / "model.pt"), read_index(index), read_labels(labels))
    answers = searcher.predict(golden[:3], 5)
    responses = running.predict([PredictRequest(encode_png(image), "5") for image in golden[:3]])
    for response, answer in zip(responses, answers, strict=True):
        assert body(response).items() >= json.loads(json.dumps(answer.as_dict())).items()
