"""The report of an evaluation: figures, tables and a self-contained HTML page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from arcloop.display.html import data_uri, render_template
from arcloop.display.plotting import encode_png
from arcloop.evaluation.evaluator import EvaluationResult
from arcloop.evaluation.gate import GateDecision
from arcloop.evaluation.metrics.verification import Roc
from arcloop.evaluation.mistakes import Mistake, ReadImage
from arcloop.evaluation.report import plots
from arcloop.evaluation.report.glossary import GLOSSARY, HEADLINE
from arcloop.evaluation.report.projection import MIN_ROWS, project, projection_map

_NEIGHBOURS = 6
_CONFUSED_PAIRS = 12
_THUMBNAIL = 128  # pixels; smaller images are not resized
_ROC_POINTS = 120
_PIXELATED = 64  # pixels; images up to this size are enlarged without smoothing


def write_report(
    folder: Path,
    result: EvaluationResult,
    *,
    title: str,
    classes: list[str],
    image: ReadImage,
    curves: Sequence[dict[str, float]],
    facts: Sequence[tuple[str, str]],
    config_yaml: str,
    lineage: Sequence[tuple[str, str]],
    gate: GateDecision,
) -> None:
    """Write confusion_matrix.csv, roc.csv, *.png and report.html.

    Args:
        folder: Existing folder for the files.
        result: Result of the evaluation.
        title: Headline of the page.
        classes: Class names; a label is a position in the list.
        image: Reads one image of the query or gallery split.
        curves: Rows of the training's metrics.csv; may be empty.
        facts: (name, text) of times, throughput and index.
        config_yaml: The resolved config.
        lineage: (role, hash) of the artifacts from which the evaluation was made.
        gate: Decision of the gate.
    """
    _write_confusion(folder / "confusion_matrix.csv", result, classes)
    if result.pairs.eer() is not None:
        _write_roc(folder / "roc.csv", result.pairs.roc())
    images = {}
    for name, drawn in _figures(result, classes, curves):
        content = encode_png(drawn)
        (folder / f"{name}.png").write_bytes(content)
        images[name] = data_uri(content, "png")
    page = render_template(
        Path(__file__).with_name("page.html.j2"),
        title=title,
        result=result,
        metrics=_describe_metrics(result.metrics, GLOSSARY),
        headline=_describe_metrics(result.metrics, HEADLINE),
        figures=images,
        mistakes=[_describe(mistake, classes, image) for mistake in result.mistakes],
        num_wrong=int((result.confusion.total - result.confusion.right).sum()),
        confused=[
            (classes[true], classes[predicted], count)
            for true, predicted, count in result.confusion.pairs[:_CONFUSED_PAIRS]
        ],
        facts=facts,
        config_yaml=config_yaml,
        lineage=lineage,
        gate=gate,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def _describe_metrics(
    metrics: Mapping[str, float], names: Iterable[str]
) -> list[tuple[str, str, str]]:
    """Return (title, formatted value, explanation) of the metrics that were measured."""
    return [
        (GLOSSARY[name].title, format(metrics[name], GLOSSARY[name].form), GLOSSARY[name].meaning)
        for name in names
        if name in metrics
    ]


def _figures(
    result: EvaluationResult, classes: list[str], curves: Sequence[dict[str, float]]
) -> Iterator[tuple[str, Figure]]:
    """Yield (name, figure), without figures that have no data."""
    table, pairs = result.confusion, result.pairs
    if (training := plots.training_curves(curves)) is not None:
        yield "training_curves", training
    names = [classes[label] for label in table.labels]
    yield "confusion_matrix", plots.confusion_matrix(table.counts, names)
    yield "class_accuracy", plots.class_accuracy(table.right, table.total, classes)
    if (eer := pairs.eer()) is not None:
        yield "roc", plots.roc_curve(pairs.roc(), eer)
    yield (
        "similarity_histogram",
        plots.similarity_histogram(pairs.same, pairs.different, result.metrics["threshold"]),
    )
    gallery, queries = result.gallery, result.queries
    if len(gallery.rows) >= MIN_ROWS:
        gallery_N2, queries_Q2 = project(gallery.embeddings, queries.embeddings)
        yield (
            "projection",
            projection_map(
                gallery_N2,
                gallery.labels,
                queries_Q2,
                queries.labels,
                result.queries_right,
                classes,
            ),
        )


def _write_confusion(path: Path, result: EvaluationResult, classes: list[str]) -> None:
    table = result.confusion
    names = [classes[label] for label in table.labels]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["true class", *names])
        for name, counts_S in zip(names, table.counts.tolist(), strict=True):
            writer.writerow([name, *counts_S])


def _write_roc(path: Path, roc: Roc) -> None:
    """Write points of the curve, evenly spaced in the logarithm of the false accept rate."""
    rates = np.concatenate([[0.0], np.geomspace(1e-6, 1.0, _ROC_POINTS)])
    points = np.unique(np.searchsorted(roc.far, rates))
    columns = [column[points].tolist() for column in (roc.far, roc.tar, roc.threshold)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["far", "tar", "threshold"])
        writer.writerows(zip(*columns, strict=True))


def _describe(mistake: Mistake, classes: list[str], image: ReadImage) -> dict[str, Any]:
    """Return the values of a mistake that the template shows."""
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
    """Return an image as a WebP data URI; small images are encoded without loss."""
    picture = Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC)
    small = max(picture.size) <= _THUMBNAIL
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=small, quality=85)
    return data_uri(buffer.getvalue(), "webp")
