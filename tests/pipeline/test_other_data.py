"""`arcloop evaluate` of a run on data that it was not trained on, compared with brute force."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.data import Store
from arcloop.pipeline.chains import OTHER_DATA, find_store
from arcloop.retrieval import Gallery, load_model

RUN = Path("runs/synthetic")


@pytest.fixture
def own_evaluation(work):
    """Bytes of the evaluation of the run itself, which no other evaluation changes."""
    before = (RUN / "evaluation/manifest.json").read_bytes()
    yield
    assert (RUN / "evaluation/manifest.json").read_bytes() == before


def evaluate(*overrides):
    assert main(["evaluate", f"run_dir={RUN}", "evaluate.gate.min_top1=0", *overrides]) == 0
    (folder,) = (RUN / OTHER_DATA).iterdir()
    metrics = json.loads((folder / "evaluation/metrics.json").read_bytes())
    return artifacts.load(folder / "evaluation", "evaluation"), metrics


def write_pictures(root, rows_of):
    """Write query images of the run: folder -> rows."""
    store = Store.open(find_store(RUN))
    for folder, rows in rows_of.items():
        (root / folder).mkdir(parents=True)
        for row in rows:
            image = store.gather("query", np.array([row]))[0][0]
            Image.fromarray(image[..., 0]).save(root / folder / f"{row:02d}.png")


def rows_by_class():
    labels = Store.open(find_store(RUN)).labels("query")
    return [np.flatnonzero(labels == label)[:6] for label in range(3)]


def embed_queries(rows):
    store = Store.open(find_store(RUN))
    return load_model(RUN / "model.pt", "cpu").embed(store.gather("query", np.array(rows))[0])


def test_other_data_are_evaluated_on_their_own_gallery(own_evaluation, capsys):
    evaluation, metrics = evaluate("data.noise=0.9", "data.gallery=33", "data.query=20")
    store = Store.open(find_store(RUN, evaluation))
    model = load_model(RUN / "model.pt", "cpu")
    gallery, gallery_labels = store.gather("gallery", np.arange(33))
    queries, labels = store.gather("query", np.arange(20))
    nearest = (model.embed(queries) @ model.embed(gallery).T).argmax(axis=1)
    assert metrics["top1"] == np.mean(gallery_labels[nearest] == labels)
    assert (metrics["num_queries"], metrics["num_gallery"]) == (20, 33)
    served = artifacts.load(RUN / "index", "index")
    assert (
        metrics["threshold"]
        == json.loads((served.path / "faiss_label.json").read_bytes())["threshold"]
    )
    assert evaluation.parents["store"] == store.artifact.sha256
    assert store.artifact.sha256 != artifacts.read(RUN, "run").parents["store"]
    assert f"evaluated on {store.artifact.path}" in capsys.readouterr().out.replace("\n", "")
    assert main(["lineage", str(evaluation.path)]) == 0
    assert store.artifact.path.name in capsys.readouterr().out
    (store.artifact.path / "query/labels-00000.npy").unlink()
    assert main(["lineage", str(evaluation.path)]) == 1


def test_other_data_are_evaluated_with_an_index_of_an_older_version(own_evaluation):
    manifest = RUN / "index/manifest.json"
    content = json.loads(manifest.read_bytes())
    del content["config"]["index"]["dim"]
    manifest.write_text(json.dumps(content))
    _, metrics = evaluate("data.noise=0.9", "data.gallery=33", "data.query=20")
    assert metrics["num_gallery"] == 33
    assert main(["reproduce", str(RUN)]) == 0


def test_queries_are_compared_with_the_gallery_of_the_run_by_class_name(own_evaluation):
    zero, one, two = rows_by_class()
    write_pictures(Path("pics"), {"query/class-2": two, "query/class-1": one, "query/new": zero})
    _, metrics = evaluate("data=image_folder", "data.root=pics", "evaluate.gallery=run")
    gallery = Gallery(RUN / "gallery")
    rows_GD = np.concatenate([embeddings for embeddings, _ in gallery.chunks()])
    nearest = gallery.labels[(embed_queries([*one, *two]) @ rows_GD.T).argmax(axis=1)]
    right = (nearest == np.repeat([1, 2], [len(one), len(two)])).sum()
    assert metrics["top1"] == right / (len(one) + len(two))
    assert metrics["num_queries_not_in_gallery"] == len(zero)
    assert metrics["num_gallery"] == gallery.rows
    report = next((RUN / OTHER_DATA).iterdir()) / "evaluation/report.html"
    assert "new" in report.read_text(encoding="utf-8")


def test_all_images_of_a_folder_are_queries(own_evaluation):
    """They have the size of the model, and each is compared with all others."""
    rows = rows_by_class()
    write_pictures(Path("pics"), {f"any-{label}": of_class for label, of_class in enumerate(rows)})
    _, metrics = evaluate("data=image_folder", "data.root=pics")
    embeddings = embed_queries(np.concatenate(rows))
    labels = np.repeat([0, 1, 2], list(map(len, rows)))
    similarities = embeddings @ embeddings.T
    np.fill_diagonal(similarities, -2)
    assert metrics["top1"] == np.mean(labels[similarities.argmax(axis=1)] == labels)
    assert metrics["num_queries"] == metrics["num_gallery"] == len(labels)
    report = next((RUN / OTHER_DATA).iterdir()) / "evaluation/report.html"
    assert 'alt="gallery 0" title="any-0/' in report.read_text(encoding="utf-8")


def test_the_data_of_the_run_are_evaluated_as_before(work):
    for override in ("data.train=300", "data.noise=1.0", f"store_dir={find_store(RUN)}"):
        assert main(["evaluate", f"run_dir={RUN}", override]) in (0, 3)
    assert not (RUN / OTHER_DATA).exists()


def test_a_store_is_evaluated(own_evaluation):
    assert main(["prepare", "data=synthetic", "data.num_classes=50", "data.gallery=50",
                 "data.query=50", "data.train=100", "data.val=100", "data.image_size=16",
                 "store_dir=mine"]) == 0  # fmt: skip
    evaluation, metrics = evaluate("store_dir=mine")
    assert evaluation.path.parent.name == "mine"
    assert metrics["num_classes"] == 50
    assert main(["lineage", str(evaluation.path)]) == 0


@pytest.mark.parametrize(
    ("folder", "overrides", "message"),
    [
        ("query/a", [], "evaluate.gallery=run"),
        ("train/a", [], "no images in gallery and query"),
        ("a", ["data.image_size=20"], "prepare them with data.image_size=[16,16]"),
        ("a", ["data.channels=3"], "prepare them with data.image_size=[16,16] data.channels=1"),
    ],
)
def test_unsuitable_data_are_refused(own_evaluation, capsys, folder, overrides, message):
    write_pictures(Path("pics"), {folder: [0, 1, 2]})
    data = ["data=image_folder", "data.root=pics", *overrides]
    assert main(["evaluate", f"run_dir={RUN}", *data]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not (RUN / OTHER_DATA).exists()


@pytest.mark.parametrize(
    ("verb", "override"),
    [
        ("embed", "data.root=other"), ("index", "store_dir=other"), ("evaluate", "head.margin=1"),
        ("evaluate", "trainer=gpu"), ("export", "evaluate.gate.min_top1=0"),
    ],
)  # fmt: skip
def test_keys_that_a_command_does_not_read_are_refused(work, capsys, verb, override):
    assert main([verb, f"run_dir={RUN}", override]) == 2
    key = override.partition("=")[0]
    assert f"`arcloop {verb}` works on a finished run and does not read {key}" in (
        capsys.readouterr().err
    )
