import json
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from arcloop import runtime
from arcloop.runtime.images import Conversion, encode_png
from arcloop.runtime.searcher import (
    Model,
    Searcher,
    SearcherError,
    read_index,
    read_labels,
    save_model,
)


class Mean(nn.Module):
    """Four simple features of an image, which an oracle can compute."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float().flatten(1)
        half = x.shape[1] // 2
        parts = [x[:, :half].mean(1), x[:, half:].mean(1), x[:, ::2].mean(1), torch.ones(len(x))]
        return nn.functional.normalize(torch.stack(parts, 1))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_model(
        torch.jit.script(Mean().eval()), folder / "model.pt", image_shape=(4, 4, 1), embedding_dim=4
    )
    model = Model(folder / "model.pt")
    gallery = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 1), dtype=np.uint8)
    index = faiss.IndexFlatIP(4)
    index.add(model.embed(gallery))
    faiss.write_index(index, str(folder / "index.bin"))
    labels = {"classes": ["a", "b", "c"], "threshold": 0.5, "model_sha256": model.sha256}
    (folder / "labels.json").write_text(json.dumps(labels))
    np.save(folder / "labels.npy", np.arange(30) % 3)
    return folder, gallery


def load(folder, memory_map=False):
    index = read_index(folder / "index.bin", memory_map=memory_map)
    return Searcher(Model(folder / "model.pt"), index, read_labels(folder / "labels.json"))


def test_grey_values_of_16_bits_are_scaled_as_in_training(tmp_path):
    scripted = torch.jit.script(Mean().eval())
    file = tmp_path / "image.png"
    Image.fromarray(np.full((4, 4), 2048, np.uint16)).save(file)
    for max_value, expected in ((65535, 7), (4095, 127)):
        save_model(
            scripted, tmp_path / "model.pt",
            image_shape=(4, 4, 1), embedding_dim=4, conversion=Conversion(max_value),
        )  # fmt: skip
        assert (Model(tmp_path / "model.pt").decode(file) == expected).all()


def test_a_memory_mapped_index_is_not_read_completely(tmp_path):
    """Processes of one machine then share the pages of the index."""
    index = faiss.IndexFlatIP(128)
    index.add(np.random.default_rng(0).random((64_000, 128), np.float32))
    file = tmp_path / "index.bin"
    faiss.write_index(index, str(file))
    query = index.reconstruct(63_999)[None]
    mapped = {}
    for memory_map in (True, False):
        found = read_index(file, memory_map=memory_map)
        assert found.search(query, 3)[1].tolist() == index.search(query, 3)[1].tolist()
        mapped[memory_map] = str(file) in Path("/proc/self/maps").read_text()
        del found
    assert mapped == {True: True, False: False}


@pytest.mark.parametrize("memory_map", [False, True])
def test_neighbours_agree_with_a_brute_force_search(files, memory_map):
    folder, gallery = files
    searcher = load(folder, memory_map)
    queries = np.random.default_rng(1).integers(0, 256, (7, 4, 4, 1), dtype=np.uint8)
    flat = gallery.reshape(30, -1).astype(np.float64)

    def oracle(image):
        x = image.reshape(-1).astype(np.float64)
        v = np.array([x[:8].mean(), x[8:].mean(), x[::2].mean(), 1.0])
        return v / np.linalg.norm(v)

    vectors = np.stack([oracle(image) for image in flat])
    for query, answer in zip(queries, searcher.predict(queries, k=4), strict=True):
        cosine = vectors @ oracle(query)
        rows = np.argsort(-cosine)[:4]
        assert [n.row for n in answer.neighbours] == rows.tolist()
        assert [n.label for n in answer.neighbours] == (rows % 3).tolist()
        np.testing.assert_allclose(
            [n.similarity for n in answer.neighbours], cosine[rows], atol=1e-5
        )
        assert answer.class_name == "abc"[rows[0] % 3]


def test_a_prediction_below_the_threshold_is_unknown(files):
    folder, gallery = files
    searcher = load(folder)
    (known,) = searcher.predict(gallery[:1], k=1)
    assert not known.unknown
    searcher.threshold = 1.1
    (unknown,) = searcher.predict(gallery[:1], k=1)
    assert unknown.unknown


def test_k_is_limited_to_the_gallery_size(files):
    folder, gallery = files
    (answer,) = load(folder).predict(gallery[:1], k=10_000)
    assert len(answer.neighbours) == 30


def test_decode_returns_the_input_shape_of_the_model(files):
    folder, gallery = files
    assert np.array_equal(load(folder).model.decode(encode_png(gallery[0])), gallery[0])


def test_an_index_of_another_model_is_rejected(files):
    folder, _ = files
    labels = read_labels(folder / "labels.json") | {"model_sha256": "0" * 64}
    with pytest.raises(SearcherError, match="another model"):
        Searcher(Model(folder / "model.pt"), read_index(folder / "index.bin"), labels)


def test_the_numbers_of_rows_and_labels_must_agree(files):
    folder, _ = files
    labels = read_labels(folder / "labels.json")
    with pytest.raises(SearcherError, match="30 rows but 29 labels"):
        Searcher(Model(folder / "model.pt"), read_index(folder / "index.bin"),
                 labels | {"labels": labels["labels"][:-1]})  # fmt: skip


def test_labels_are_mapped_and_those_of_an_older_version_are_read(files, tmp_path):
    folder, gallery = files
    labels = read_labels(folder / "labels.json")
    searcher = load(folder)
    assert isinstance(labels["labels"], np.memmap)
    assert np.shares_memory(searcher.labels, searcher.labels.base)  # not copied
    older = labels | {"labels": labels["labels"].tolist()}
    (tmp_path / "labels.json").write_text(json.dumps(older))
    assert read_labels(tmp_path / "labels.json") == older
    again = Searcher(searcher.model, searcher.index, older)
    assert again.predict(gallery, k=3) == searcher.predict(gallery, k=3)


@pytest.mark.parametrize("content", [None, b"", b"junk", b"PK\x03\x04"])
def test_a_missing_or_damaged_file_of_row_labels_is_an_error(files, tmp_path, content):
    folder, _ = files
    (tmp_path / "labels.json").write_bytes((folder / "labels.json").read_bytes())
    if content is not None:
        (tmp_path / "labels.npy").write_bytes(content)
    with pytest.raises(SearcherError, match=r"labels\.npy is not a label file"):
        read_labels(tmp_path / "labels.json")


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04"])
def test_a_damaged_file_is_an_error(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    for read in (Model, read_index, read_labels):
        with pytest.raises(SearcherError, match="is not a"):
            read(tmp_path / "x")


def test_a_copy_of_the_runtime_works_without_arcloop(files, tmp_path):
    """Archives contain such a copy."""
    import shutil
    import subprocess
    import sys

    folder, _ = files
    shutil.copytree(Path(runtime.__file__).parent, tmp_path / "copied")
    code = (
        "import sys; sys.modules['arcloop'] = None; import numpy as np; from pathlib import Path;"
        "from copied.searcher import Model, Searcher, read_index, read_labels;"
        f"f = Path({str(folder)!r});"
        "index, labels = read_index(f / 'index.bin'), read_labels(f / 'labels.json');"
        "s = Searcher(Model(f / 'model.pt'), index, labels);"
        "print(s.predict(np.zeros((1, 4, 4, 1), np.uint8), k=1)[0].as_dict()['class_name'])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout.strip() in "abc"
