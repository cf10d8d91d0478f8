"""Disjoint classes for training and evaluation: the command line against a slow oracle."""

import json

import numpy as np
import pytest
import torch
from tests.conftest import arcloop_in

from arcloop import artifacts
from arcloop.cli.main import main
from arcloop.data import SPLITS, Store
from arcloop.runtime.searcher import Model

RUN = [
    "data=synthetic", "data.split=disjoint", "data.num_classes=12", "data.val_classes=3",
    "data.test_classes=0.34", "data.train=200", "data.val=60", "data.gallery=90",
    "data.image_size=16", "data.noise=1.0", "data.shard_rows=64", "loader.batch_size=40",
    "sampler=pk", "sampler.images_per_class=8", "trainer.max_epochs=1", "backbone.widths=[8,8]",
    "embedder.embedding_dim=16", "evaluate.gate.min_top1=null",
]  # fmt: skip

# The rounding error of a float32 cosine of two rows of 16 values is at most 16 * 2**-24. If two
# cosines differ by less than twice this bound, their order depends on the shape of the matrix
# product and on the instruction set.
NEAR_TIE = 2 * 16 * 2**-24


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return arcloop_in(tmp_path_factory.mktemp("disjoint"), "run", *RUN) / "runs/synthetic"


@pytest.fixture(scope="module")
def store(run):
    (path,) = (path for path in (run.parents[1] / "stores").iterdir() if path.is_dir())
    return Store.open(path)


def embedded(run, store, split):
    """Return the embeddings (float64) and labels of a split."""
    images, labels = store.gather(split, np.arange(store.rows(split)))
    return Model(run / "model.pt", "cpu").embed(images).astype(np.float64), labels


def test_train_val_and_gallery_have_disjoint_classes(store):
    labels = {split: set(store.labels(split).tolist()) for split in SPLITS}
    assert labels["train"] == {0, 1, 2, 3, 4}  # consecutive, as the head requires
    assert labels["val"] == {5, 6, 7}
    assert labels["gallery"] == labels["query"] == {8, 9, 10, 11}
    assert store.classes == [f"class-{label:02d}" for label in range(12)]


def test_gallery_and_query_are_the_same_rows_stored_once(store):
    assert store.artifact.info["leave_one_out"] is True
    assert not (store.artifact.path / "query").exists()
    images = store.artifact.path.glob("*/images-*.npy")
    assert sum(len(np.load(file)) for file in images) == 200 + 60 + 90
    for split in ("gallery", "query"):
        batches = list(store.batches(split, 17))
        assert sum(len(labels) for _, labels in batches) == store.rows(split) == 90
    for one, two in zip(store.batches("gallery", 17), store.batches("query", 17), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_head_has_only_the_classes_of_train(run):
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    (weight,) = (value for name, value in state.items() if name.startswith("head."))
    assert 5 in weight.shape


def ranking_metrics(similarities, labels):
    """Compute the ranking metrics of each row by their definitions."""
    order = np.argsort(-similarities, axis=1)[:, :-1]
    same = labels[order] == labels[:, None]
    average, precision = [], []
    for row in same:
        r = row.sum()
        precision.append(row[:r].mean())
        average.append(sum(row[: i + 1].mean() for i in range(r) if row[i]) / r)
    of_class = same[:, 0]
    return {
        "top1": of_class.mean(),
        "recall_at_1": of_class.mean(),
        "recall_at_5": same[:, :5].any(axis=1).mean(),
        "recall_at_10": same[:, :10].any(axis=1).mean(),
        "map_at_r": np.mean(average),
        "r_precision": np.mean(precision),
        "mean_class_accuracy": np.mean([of_class[labels == c].mean() for c in set(labels)]),
    }


def test_metrics_are_those_of_the_similarity_matrix_without_its_diagonal(run, store):
    embeddings, labels = embedded(run, store, "query")
    similarities = embeddings @ embeddings.T
    np.fill_diagonal(similarities, -np.inf)
    # Every ranking metric is highest if near-ties are ordered in favour of the query's class, and
    # lowest if they are ordered against it.
    shift = NEAR_TIE * (labels[:, None] == labels)
    lowest = ranking_metrics(similarities - shift, labels)
    highest = ranking_metrics(similarities + shift, labels)
    metrics = json.loads((run / "evaluation/metrics.json").read_bytes())
    for name, low in lowest.items():
        assert low - 1e-9 <= metrics[name] <= highest[name] + 1e-9, name
        assert highest[name] - low < 0.01, name  # the bounds must be tight
    nearest = similarities.max(axis=1)
    low, high = ((nearest < metrics["threshold"] + t).mean() for t in (-NEAR_TIE, NEAR_TIE))
    assert low <= metrics["unknown_rate"] <= high
    ranked = np.sort(similarities, axis=1)[:, ::-1]
    certain = ranked[:, :10] > ranked[:, 10:11] + NEAR_TIE  # among the first 10 in any order
    assert certain.mean() <= metrics["index_recall_at_10"] <= 1
    assert certain.mean() > 0.99
    expected = {
        "num_queries": 90,
        "num_gallery": 90,
        "num_classes": 4,
        "num_queries_not_in_gallery": 0,
    }
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["top1"] < 1  # the images are hard enough for the diagonal to matter


def test_verification_excludes_pairs_of_a_row_with_itself(run, store):
    embeddings, labels = embedded(run, store, "query")
    off_diagonal = ~np.eye(len(labels), dtype=bool)
    similarities = (embeddings @ embeddings.T)[off_diagonal]
    same = (labels[:, None] == labels)[off_diagonal]
    thresholds = np.sort(similarities)
    rejected = np.searchsorted(np.sort(similarities[same]), thresholds) / same.sum()
    accepted = 1 - np.searchsorted(np.sort(similarities[~same]), thresholds) / (~same).sum()
    nearest = np.argmin(np.abs(rejected - accepted))
    metrics = json.loads((run / "evaluation/metrics.json").read_bytes())
    assert metrics["eer"] == pytest.approx((rejected + accepted)[nearest] / 2, abs=2e-3)


def test_threshold_is_calibrated_on_val_as_unknown_and_index_has_the_whole_gallery(run, store):
    gallery, labels = embedded(run, store, "gallery")
    val, _ = embedded(run, store, "val")
    best = np.sort((val @ gallery.T).max(axis=1))[::-1]
    label_file = json.loads((run / "index/faiss_label.json").read_bytes())
    assert np.load(run / "index/faiss_label.npy").tolist() == labels.tolist()
    assert label_file["threshold"] == pytest.approx(best[int(0.01 * len(best))], abs=1e-5)


def test_confusion_matrix_has_class_names_and_report_names_the_protocol(run, store):
    header, *lines = (run / "evaluation/confusion_matrix.csv").read_text().splitlines()
    names = [f"class-{label:02d}" for label in range(8, 12)]
    assert header == ",".join(["true class", *names])
    counts = np.array([line.split(",")[1:] for line in lines], int)
    assert counts.sum(axis=1).tolist() == np.bincount(store.labels("query"))[8:].tolist()
    page = (run / "evaluation/report.html").read_text()
    assert "leave-one-out" in page
    assert "in 4 classes" in page
    assert artifacts.load(run / "evaluation", "evaluation").info["leave_one_out"] is True


def test_query_prints_the_class_name(run, store, tmp_path, capsys):
    from PIL import Image

    images, labels = store.gather("gallery", np.array([7]))
    Image.fromarray(images[0, ..., 0]).save(tmp_path / "a.png")
    assert main(["query", str(tmp_path / "a.png"), "--run", str(run), "-k", "1", "--json"]) == 0
    assert f"class-{labels[0]:02d}" in capsys.readouterr().out


def test_validation_passes_and_shows_the_splits(store):
    report = json.loads((store.artifact.path / "validation/report.json").read_bytes())
    assert report["errors"] == []
    assert report["classes"]["class-00"] == {"train": 40, "val": 0, "gallery": 0}
    of_gallery = report["classes"]["class-08"]
    assert of_gallery["gallery"] > 0
    assert report["leave_one_out"]


def test_a_gallery_of_another_store_is_rejected(run, store):
    from arcloop.errors import ArtifactError
    from arcloop.evaluation.evaluate import _require_same_store
    from arcloop.retrieval import Gallery

    gallery = Gallery(run / "gallery")
    _require_same_store(gallery, store)
    gallery.artifact.parents["store"] = "0" * 64
    with pytest.raises(ArtifactError, match="was not embedded from the store"):
        _require_same_store(gallery, store)


def test_more_classes_in_a_batch_than_train_has(run, monkeypatch, capsys):
    monkeypatch.chdir(run.parents[1])
    assert main(["train", *RUN, "sampler.images_per_class=4", "run_dir=runs/other"]) == 2
    output = capsys.readouterr().err
    assert "needs 10 classes, but train has 5" in output
    assert "pass sampler.images_per_class=8 or loader.batch_size=20" in output
    assert not (run.parent / "other").exists()
