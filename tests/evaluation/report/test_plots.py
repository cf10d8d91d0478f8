"""Figures are drawn for data of any size and show their data."""

import io

import numpy as np
import pytest
from PIL import Image

from arcloop.display.plotting import DPI, encode_png
from arcloop.evaluation.metrics.verification import SimilarityHistogram
from arcloop.evaluation.report import plots
from arcloop.evaluation.report.plots import confusion_matrix
from arcloop.evaluation.report.projection import projection_map

CURVES = [
    {"step": 0.0, "epoch": 0.0, "train_loss": 9.0, "lr-SGD/pg1": 0.1, "lr-SGD/pg2": 0.2},
    {"step": 5.0, "epoch": 0.0, "val_top1": 0.5, "val_eer": 0.25},
    {"step": 9.0, "epoch": 1.0, "val_top1": 0.75, "val_eer": 0.3, "train_loss": 3.0},
]


def drawn(figure):
    image = Image.open(io.BytesIO(encode_png(figure)))
    pixels = np.asarray(image)
    assert pixels.shape[2] == 4
    assert pixels[0, 0, 3] == 0  # transparent, for light and dark pages
    assert pixels[..., 3].any()
    assert image.width == round(figure.get_figwidth() * DPI)
    return pixels


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_training_curves_hold_what_was_logged():
    figure = plots.training_curves(CURVES)
    drawn(figure)
    loss, validation, rates = figure.axes
    assert loss.lines[0].get_xydata().tolist() == [[0, 9], [9, 3]]
    legend = [text.get_text() for text in validation.get_legend().get_texts()]
    assert legend == ["val_eer, lowest 0.2500", "val_top1, highest 0.7500"]
    top1 = validation.lines[-1].get_ydata()
    assert min(top1) == 0.25  # the error of the highest value
    assert len(rates.lines) == 2


def test_of_the_layers_only_the_ends_have_a_learning_rate_curve():
    names = ["embedder", "head", *(f"backbone_{layer:02}" for layer in range(14))]
    curves = [{"step": 0.0, **{f"lr-AdamW/{name}": 0.1 for name in names}}]
    rates = plots.training_curves(curves).axes[2]
    found = [line.get_label().partition("/")[2] for line in rates.lines]
    assert found == ["backbone_00", "backbone_13", "embedder", "head"]


def test_without_curves_nothing_is_drawn():
    assert plots.training_curves([]) is None
    assert plots.training_curves([{"step": 1.0, "epoch": 0.0}]) is None
    drawn(plots.training_curves([{"step": 1.0, "train_loss": 2.0}]))


def pairs_of(same, different):
    pairs = SimilarityHistogram()
    values = np.concatenate([same, different]).astype(np.float32)
    labels = np.arange(len(values)) >= len(same)
    pairs.update(values[None], np.zeros(1, np.int64), labels.astype(np.int64))
    return pairs


@pytest.mark.parametrize("low", [0.2, -0.5])
def test_roc_marks_the_equal_error_rate_and_measurable_rates(low):
    random = np.random.default_rng(0)
    pairs = pairs_of(random.uniform(low, low + 0.5, 500), random.uniform(-1, 0, 5000))
    rate = pairs.tar_at_far(1e-2)
    figure = plots.roc_curve(pairs.roc(), pairs.eer(), {1e-2: rate})
    drawn(figure)
    assert texts(figure.axes[0]) == [f"{rate:.2%}", f"EER {pairs.eer():.2%}"]


@pytest.mark.parametrize(
    ("threshold", "text"),
    [(-1.0, None), (0.25, "0.250"), (0.99997, "0.99997"), (1.0000001, "1.0000001")],
)
def test_histogram_shows_the_threshold(threshold, text):
    pairs = pairs_of(np.full(7, 0.5), [])
    figure = plots.similarity_histogram(pairs.same, pairs.different, threshold)
    drawn(figure)
    assert texts(figure.axes[0]) == ([f"unknown below {text} "] if text else [])


def test_histogram_has_equal_bins():
    pairs = pairs_of([0.993, 0.999, 1], [-1, -0.99, 0.005])
    same, different = pairs.same, pairs.different
    figure = plots.similarity_histogram(same, np.zeros_like(same), -1)
    values, edges, _ = figure.axes[0].patches[0].get_data()
    assert edges == pytest.approx(np.linspace(-1, 1, 101))
    assert np.flatnonzero(values).tolist() == [99]
    figure = plots.similarity_histogram(np.zeros_like(same), different, -1)
    values, _, _ = figure.axes[0].patches[0].get_data()
    assert values[[0, 50]].tolist() == pytest.approx([2 / 3, 1 / 3])


def test_class_accuracy_puts_the_worst_first_and_leaves_the_empty_out():
    figure = plots.class_accuracy(np.array([9, 0, 5, 0]), np.array([10, 0, 10, 4]), list("abcd"))
    drawn(figure)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["d", "c", "a"]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([1, 0.5, 0.1])


def test_of_many_classes_the_worst_40_are_drawn():
    right = np.arange(1000)
    figure = plots.class_accuracy(right, np.full(1000, 1000), [f"class {i}" for i in range(1000)])
    drawn(figure)
    assert len(figure.axes[0].patches) == 40
    assert figure.axes[0].get_yticklabels()[0].get_text() == "class 0"


def test_class_accuracy_without_mistakes():
    drawn(plots.class_accuracy(np.array([3]), np.array([3]), ["only"]))


@pytest.mark.parametrize("size", [1, 2, 16, 17, 40, 41])
def test_confusion_matrix_of_any_size(size):
    random = np.random.default_rng(0)
    counts = random.integers(0, 4, (size, size))
    figure = confusion_matrix(counts, [f"class {i}" for i in range(size)])
    drawn(figure)
    if size <= 16:
        written = sorted(int(text) for text in texts(figure.axes[0]))
        assert written == sorted(counts[counts > 0].tolist())


def test_one_mistake_among_a_thousand_classes_is_seen():
    counts = np.diag(np.full(1000, 50))
    clean = confusion_matrix(counts, [""] * 1000)
    counts[700, 20] = 1
    figure = confusion_matrix(counts, [""] * 1000)
    cells = figure.axes[0].images[0].get_array()
    assert cells.shape == (200, 200, 4)
    assert cells[140, 4, 3] == 1
    assert np.count_nonzero(cells[..., 3]) == 200 + 1
    assert np.count_nonzero(clean.axes[0].images[0].get_array()[..., 3]) == 200
    drawn(figure)


@pytest.mark.parametrize("num_classes", [1, 30, 31])
def test_projection_rings_wrong_answers(num_classes):
    random = np.random.default_rng(0)
    gallery, queries = random.random((60, 2)), random.random((50, 2))
    right = random.random(50) < 0.7
    classes = [f"class {i}" for i in range(num_classes)]
    figure = projection_map(
        gallery, np.arange(60) % num_classes, queries, np.arange(50) % num_classes, right, classes
    )
    drawn(figure)
    (axis,) = figure.axes
    assert np.array_equal(axis.collections[2].get_offsets(), queries[~right])
    assert len(axis.texts) == (num_classes if num_classes <= 30 else 0)


def test_names_are_taken_as_they_are():
    names = ["$\\alpha", "a & b_c^2", "é" * 60]
    drawn(confusion_matrix(np.eye(3, dtype=int), names))
    figure = plots.class_accuracy(np.array([1, 1, 1]), np.array([2, 2, 2]), names)
    drawn(figure)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["\\$\\alpha", "a & b_c^2", "é" * 17 + "…"]


def test_figures_are_the_same_in_every_run():
    assert encode_png(plots.training_curves(CURVES)) == encode_png(plots.training_curves(CURVES))
