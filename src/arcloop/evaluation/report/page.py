"""The report: figures, the confusion table, and one page that needs nothing beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from arcloop.display.html import data_uri, render_template
from arcloop.display.plotting import encode_png
from arcloop.evaluation.evaluator import Judgement
from arcloop.evaluation.gate import Verdict
from arcloop.evaluation.metrics.verification import Roc
from arcloop.evaluation.mistakes import Mistake
from arcloop.evaluation.report import plots
from arcloop.evaluation.report.confusion_plot import confusion_matrix
from arcloop.evaluation.report.glossary import GLOSSARY, HEADLINE, format_metric
from arcloop.evaluation.report.projection import LEAST_ROWS, project

ReadImage = Callable[[str, int], npt.NDArray[np.uint8]]
"""Split ("query" or "gallery") and row -> uint8 [H, W, C]."""

_NEIGHBOURS = 6
_CONFUSED_PAIRS = 12
_THUMBNAIL = 128  # pixels; a smaller image keeps its own
_ROC_POINTS = 120
_PIXELATED = 64  # pixels up to which an image is shown enlarged with its pixels sharp


def write_report(
    folder: Path,
    judgement: Judgement,
    *,
    title: str,
    classes: list[str],
    image: ReadImage,
    curves: Sequence[dict[str, float]],
    facts: Sequence[tuple[str, str]],
    config_yaml: str,
    lineage: Sequence[tuple[str, str]],
    gate: Verdict,
) -> None:
    """Write confusion_matrix.csv, roc.csv, *.png and report.html.

    Args:
        folder: Where to; it exists.
        judgement: What was found.
        title: Headline of the page.
        classes: Class names; a label is a position in it.
        image: Reads one image of the query or gallery split.
        curves: Rows of metrics.csv of the training; empty: there are none.
        facts: (name, text): times, throughput, index.
        config_yaml: The resolved config.
        lineage: (role, hash) of what the evaluation was made from.
        gate: The verdict.
    """
    _write_confusion(folder / "confusion_matrix.csv", judgement, classes)
    if judgement.pairs.eer() is not None:
        _write_roc(folder / "roc.csv", judgement.pairs.roc())
    images = {}
    for name, drawn in _figures(judgement, classes, curves):
        content = encode_png(drawn)
        (folder / f"{name}.png").write_bytes(content)
        images[name] = data_uri(content, "png")
    page = render_template(
        Path(__file__).with_name("page.html.j2"),
        title=title,
        judgement=judgement,
        metrics=[
            (entry.title, format_metric(entry, judgement.metrics[name]), entry.meaning)
            for name, entry in GLOSSARY.items()
            if name in judgement.metrics
        ],
        headline=[
            (GLOSSARY[name].title, format_metric(GLOSSARY[name], judgement.metrics[name]))
            for name in HEADLINE
            if name in judgement.metrics
        ],
        figures=images,
        mistakes=[_describe(mistake, classes, image) for mistake in judgement.mistakes],
        num_wrong=int((judgement.confusion.total - judgement.confusion.right).sum()),
        confused=[
            (classes[true], classes[answered], count)
            for true, answered, count in judgement.confusion.pairs[:_CONFUSED_PAIRS]
        ],
        facts=facts,
        config_yaml=config_yaml,
        lineage=lineage,
        gate=gate,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def _figures(
    judgement: Judgement, classes: list[str], curves: Sequence[dict[str, float]]
) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure, those left out for which there are no data."""
    table, pairs = judgement.confusion, judgement.pairs
    if (training := plots.training_curves(curves)) is not None:
        yield "training_curves", training
    names = [classes[label] for label in table.labels]
    yield "confusion_matrix", confusion_matrix(table.counts, names)
    yield "class_accuracy", plots.class_accuracy(table.right, table.total, classes)
    if (eer := pairs.eer()) is not None:
        yield "roc", plots.roc_curve(pairs.roc(), eer)
    yield (
        "similarity_histogram",
        plots.similarity_histogram(pairs.same, pairs.different, judgement.metrics["threshold"]),
    )
    gallery, queries = judgement.gallery, judgement.queries
    if len(gallery.rows) >= LEAST_ROWS:
        gallery_N2, queries_Q2 = project(gallery.embeddings, queries.embeddings)
        yield (
            "projection",
            plots.projection_map(
                gallery_N2,
                gallery.labels,
                queries_Q2,
                queries.labels,
                judgement.queries_right,
                classes,
            ),
        )


def _write_confusion(path: Path, judgement: Judgement, classes: list[str]) -> None:
    table = judgement.confusion
    names = [classes[label] for label in table.labels]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["true class", *names])
        for name, counts_S in zip(names, table.counts.tolist(), strict=True):
            writer.writerow([name, *counts_S])


def _write_roc(path: Path, roc: Roc) -> None:
    """Write points of the curve, evenly over the magnitudes of the false accept rate."""
    rates = np.concatenate([[0.0], np.geomspace(1e-6, 1.0, _ROC_POINTS)])
    points = np.unique(np.searchsorted(roc.far, rates))
    columns = [column[points].tolist() for column in (roc.far, roc.tar, roc.threshold)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["far", "tar", "threshold"])
        writer.writerows(zip(*columns, strict=True))


def _describe(mistake: Mistake, classes: list[str], image: ReadImage) -> dict[str, Any]:
    nearest = zip(
        mistake.neighbour_rows,
        mistake.neighbour_labels,
        mistake.neighbour_similarities,
        strict=True,
    )
    query_HWC = image("query", mistake.query_row)
    return {
        "row": mistake.query_row,
        "pixelated": max(query_HWC.shape) <= _PIXELATED,
        "image": _thumbnail(query_HWC),
        "label": classes[mistake.label],
        "predicted": classes[mistake.predicted],
        "similarity": mistake.similarity,
        "neighbours": [
            {
                "row": row,
                "image": _thumbnail(image("gallery", row)),
                "label": classes[label],
                "similarity": similarity,
                "right": label == mistake.label,
            }
            for row, label, similarity in list(nearest)[:_NEIGHBOURS]
        ],
    }


def _thumbnail(pixels_HWC: npt.NDArray[np.uint8]) -> str:
    picture = Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC)
    small = max(picture.size) <= _THUMBNAIL
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=small, quality=85)
    return data_uri(buffer.getvalue(), "webp")
