"""What both servers answer with, asked directly."""

import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from arcloop.runtime import responder
from arcloop.runtime.images import encode_png
from arcloop.runtime.responder import Question, Responder, ResponderError
from arcloop.runtime.searcher import Searcher
from arcloop.serving.archive import collect, write_archive


@pytest.fixture(scope="module")
def unpacked(small_run, make_settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    settings = make_settings(folder / "store", max_pixels=4096, max_k=20, max_request_bytes=50_000)
    archive = write_archive(collect(small_run, settings, force=False), folder)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder / "unpacked")
    return folder / "unpacked"


def handler_settings(folder):
    return yaml.safe_load((folder / "model-config.yaml").read_bytes())["handler"]


@pytest.fixture(scope="module")
def running(unpacked):
    return Responder(unpacked, handler_settings(unpacked))


@pytest.fixture(scope="module")
def golden(small_run):
    return np.load(small_run / "golden.npz")["images"]


def body(reply):
    return json.loads(reply.body)


def test_answers_are_those_of_the_run(running, golden, small_run):
    """Held against the stored embeddings and a search by hand."""
    stored = np.load(small_run / "golden.npz")["embeddings"].astype(np.float64)
    gallery = np.load(small_run / "gallery/embeddings-00000.npy").astype(np.float64)
    labels = np.load(small_run / "gallery/labels-00000.npy")
    classes = json.loads((small_run / "index/faiss_label.json").read_text())["classes"]
    replies = running.reply([Question(encode_png(image), "3") for image in golden])
    for reply, embedding in zip(replies, stored, strict=True):
        cosines = gallery @ embedding
        nearest = np.argsort(-cosines)[:3]
        answer = body(reply)
        assert reply.status == 200
        assert [n["row"] for n in answer["neighbours"]] == nearest.tolist()
        np.testing.assert_allclose(
            [n["similarity"] for n in answer["neighbours"]], cosines[nearest], atol=1e-5
        )
        assert answer["label"] == labels[nearest[0]]
        assert answer["class_name"] == classes[labels[nearest[0]]]
        assert answer["unknown"] in (True, False)


def test_an_answer_says_which_model_gave_it(running, golden, unpacked):
    (reply,) = running.reply([Question(encode_png(golden[0]))])
    manifest = json.loads((unpacked / "manifest.json").read_text())
    assert body(reply)["model"] == {"name": "synthetic", "version": manifest["version"]}
    assert body(reply)["lineage"] == manifest["parents"]
    assert len(body(reply)["neighbours"]) == 5


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_bad_images_get_reasons_and_harm_no_neighbour(running, golden):
    good = [Question(encode_png(image)) for image in golden[:4]]
    bad = {
        "empty": Question(b""),
        "not an image": Question(b"hello"),
        "cannot be decoded": Question(good[0].image[:-40]),
        "10,000 pixels; at most 4,096": Question(saved(Image.new("L", (100, 100)), "PNG")),
        "50,001 bytes; at most 50,000": Question(b"x" * 50_001),
        "k='0' must be": Question(good[0].image, "0"),
        "k='21' must be a number from 1 to 20": Question(good[0].image, "21"),
        "k='-1'": Question(good[0].image, "-1"),
        "k='9999": Question(good[0].image, "9" * 5000),
        "k='nan'": Question(good[0].image, "nan"),
    }
    mixed = [*bad.values()]
    for place, question in zip((0, 3, 7, len(mixed)), good, strict=True):
        mixed.insert(place, question)
    replies = dict(zip(map(id, mixed), running.reply(mixed), strict=True))
    alone = [running.reply([question])[0] for question in good]
    for question, expected in zip(good, alone, strict=True):
        found = replies[id(question)]
        assert found.status == 200
        np.testing.assert_allclose(
            body(found)["similarity"], body(expected)["similarity"], atol=1e-5
        )
        assert body(found)["neighbours"][0]["row"] == body(expected)["neighbours"][0]["row"]
    for reason, question in bad.items():
        assert replies[id(question)].status == (413 if "bytes" in reason else 400)
        assert reason in body(replies[id(question)])["error"]


def test_each_gets_as_many_neighbours_as_it_asked_for(running, golden):
    replies = running.reply([Question(encode_png(golden[0]), str(k)) for k in (1, 20, 7)])
    assert [len(body(reply)["neighbours"]) for reply in replies] == [1, 20, 7]


def test_no_question_no_reply(running):
    assert running.reply([]) == []


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "L"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "RGBA"), ("PNG", "I;16"),
     ("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("BMP", "RGB")],
)  # fmt: skip
def test_formats_and_modes(running, kind, mode):
    image = Image.linear_gradient("L").resize((30, 20))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    (reply,) = running.reply([Question(saved(image.convert(mode), kind))])
    assert reply.status == 200


@pytest.mark.parametrize("name", ["model.pt", "faiss_index.bin", "faiss_label.json", "images.py",
                                  "golden.npz", "model-config.yaml"])  # fmt: skip
def test_a_changed_part_is_refused(unpacked, tmp_path, name):
    folder = shutil.copytree(unpacked, tmp_path / "copy")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ResponderError, match=f"{name} has other contents"):
        Responder(folder, handler_settings(unpacked))


def test_a_folder_that_is_no_archive(tmp_path):
    with pytest.raises(ResponderError, match="is not an unpacked archive"):
        responder.verify(tmp_path)


def test_an_archive_that_computes_something_else_is_refused(unpacked, tmp_path):
    folder = with_golden(shutil.copytree(unpacked, tmp_path / "copy"), lambda e: -e)
    with pytest.raises(ResponderError, match="the parity gate refuses this archive"):
        Responder(folder, handler_settings(folder))


def with_golden(folder, change):
    """Replace the golden embeddings and the hash that the manifest has of them."""
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
    mapped = Responder(unpacked, handler_settings(unpacked) | {"memory_map": True})
    questions = [Question(encode_png(image)) for image in golden]
    assert mapped.reply(questions) == running.reply(questions)


def test_it_runs_where_arcloop_is_not_installed(unpacked, golden, tmp_path):
    (tmp_path / "image.png").write_bytes(encode_png(golden[0]))
    code = (
        "import sys; sys.modules['arcloop'] = None\n"
        "import yaml; from pathlib import Path\n"
        "from arcloop_runtime.responder import Question, Responder\n"
        "from arcloop_runtime import images; assert images.__file__.startswith(str(Path.cwd()))\n"
        "settings = yaml.safe_load(open('model-config.yaml'))['handler']\n"
        f"image = Path({str(tmp_path / 'image.png')!r}).read_bytes()\n"
        "print(Responder(Path('.'), settings).reply([Question(image)])[0].body.decode())"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=unpacked, check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert json.loads(done.stdout)["model"]["name"] == "synthetic"


def test_a_folder_called_images_does_not_shadow_the_decoder(unpacked, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "__init__.py").write_text("raise RuntimeError('not the decoder')")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import arcloop_runtime.responder"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, tmp_path], cwd=unpacked, check=True)


def test_searcher_and_responder_are_one_implementation(unpacked, running, golden):
    searcher = Searcher.load(*(unpacked / n for n in (
        "model.pt", "faiss_index.bin", "faiss_label.json")))  # fmt: skip
    answers = searcher.answer(golden[:3], 5)
    replies = running.reply([Question(encode_png(image), "5") for image in golden[:3]])
    for reply, answer in zip(replies, answers, strict=True):
        assert body(reply).items() >= json.loads(json.dumps(answer.as_dict())).items()
    assert Path(responder.__file__).name == "responder.py"
