"""The report of an evaluation: figures, tables and a self-contained HTML page."""

from __future__ import annotations

import csv
import io
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from arcloop.artifacts.metrics import is_pair_list_accuracy
from arcloop.data import Store
from arcloop.display.html import data_uri, render_template
from arcloop.display.plotting import drawable_names, encode_png
from arcloop.display.terminal import format_similarity
from arcloop.evaluation.compare import Comparison, Flip
from arcloop.evaluation.evaluator import EvaluationResult
from arcloop.evaluation.gate import GateDecision
from arcloop.evaluation.metrics.quality import error_versus_reject
from arcloop.evaluation.metrics.verification import FARS, Roc
from arcloop.evaluation.mistakes import Mistake, ReadImage
from arcloop.evaluation.report import plots
from arcloop.evaluation.report.class_table import (
    class_rows,
    frequent_mistakes,
    pack_rows,
    write_rows,
)
from arcloop.evaluation.report.projection import MIN_ROWS, project, projection_map

_THUMBNAIL = 128  # pixels; smaller images are not resized
_ROC_POINTS = 120
_OF_PAIRS = re.compile("pairs_(.+?)_(accuracy|accuracy_std|eer|tar_at_far_[^_]+)")
PIXELATED = 64  # pixels; images up to this size are enlarged without smoothing


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
    comparison: Comparison | None = None,
    describe: Callable[[str, int], Mapping[str, Any]] = lambda *_: {},
) -> None:
    """Write classes.csv, confusion_matrix.csv, roc.csv, *.png and report.html.

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
        comparison: Comparison with another model.
        describe: Returns file and metadata of an image, see `Store.describe`.
    """
    drawn_names = drawable_names(classes)
    table, answers = result.confusion, result.per_query
    mistaken_C = frequent_mistakes(answers.label, answers.predicted, len(classes))
    rows = class_rows(table.right, table.total, mistaken_C, classes)
    write_rows(folder / "classes.csv", rows)
    packed, num_packed = pack_rows(rows)
    _write_confusion(folder / "confusion_matrix.csv", result, classes)
    if "eer" in result.metrics:
        _write_roc(folder / "roc.csv", result.pairs.roc())
    images = {}
    for name, drawn in _figures(result, drawn_names, curves):
        content = encode_png(drawn)
        (folder / f"{name}.png").write_bytes(content)
        images[name] = data_uri(content, "png")
    flips = [*comparison.flips, *comparison.gains] if comparison else []
    shown: list[Mistake | Flip] = [*result.mistakes, *flips]
    some = [image("query", first.query_row) for first in shown[:1]]
    pictures = Pictures(image, describe)
    page = render_template(
        Path(__file__).with_name("page.html.j2"),
        title=title,
        result=result,
        classes=classes,
        numbered=[
            (drawn, name) for drawn, name in zip(drawn_names, classes, strict=True) if drawn != name
        ],
        class_rows=rows if len(rows) > plots.MAX_BARS else [],  # otherwise the figure shows all
        packed_rows=packed,
        num_packed=num_packed,
        metrics=_describe_metrics(result),
        figures=images,
        format_similarity=format_similarity,
        thumbnail=pictures.thumbnail,
        source=pictures.source,
        pixelated=any(max(image_HWC.shape) <= PIXELATED for image_HWC in some),
        facts=facts,
        config_yaml=config_yaml,
        lineage=lineage,
        gate=gate,
        comparison=comparison,
        before="before",
        now="now",
        incumbent_thumbnail=pictures.thumbnail,
        incumbent_source=pictures.source,
        pair_lists=[
            _OF_PAIRS.sub(r"\1", name) for name in filter(is_pair_list_accuracy, result.metrics)
        ],
        changes=describe_changes(comparison) if comparison else {},
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


@dataclass(frozen=True)
class Pictures:
    """The images of a store, as a page shows them.

    Attributes:
        image: Reads one image of the query or gallery split.
        describe: Returns file and metadata of an image, see `Store.describe`.
    """

    image: ReadImage
    describe: Callable[[str, int], Mapping[str, Any]]

    @classmethod
    def of(cls, store: Store) -> Pictures:
        """Return the images of a store."""
        return cls(lambda split, row: store.gather(split, np.asarray([row]))[0][0], store.describe)

    def thumbnail(self, split: str, row: int) -> str:
        """Return an image as a data URI."""
        return make_thumbnail(self.image(split, row))

    def source(self, split: str, row: int) -> str:
        """Return the file of an image, or split and row, and a line for each metadata key."""
        facts = self.describe(split, row)
        lines = [f"{name}: {value}" for name, value in facts.get("metadata", {}).items()]
        return "\n".join([facts.get("file", f"{split} row {row}"), *lines])

    def file(self, split: str, row: int) -> str:
        """Return the file of an image, or split and row."""
        return self.source(split, row).partition("\n")[0]


def _describe_metrics(result: EvaluationResult) -> dict[str, dict[str, str]]:
    """Return name -> title, meaning, value and interval of all metrics.

    The value of a metric that is not measurable is a dash, and its meaning has the reason.
    """
    described = {}
    for name, entry in read_glossary([*result.metrics, *result.not_measurable]).items():
        if name in result.metrics:
            value = format(result.metrics[name], entry.get("format", ".2%"))
            ends = [f"{100 * end:.2f}" for end in result.intervals.get(name, ())]
            described[name] = {**entry, "value": value, "interval": "-".join(ends)}
        elif reason := result.not_measurable.get(name):
            meaning = f"{entry['meaning']} It is {reason}."
            described[name] = {**entry, "meaning": meaning, "value": "-", "interval": ""}
    return described


def describe_changes(comparison: Comparison) -> dict[str, tuple[str, str, str, str, str]]:
    """Return metric -> title, both values, difference and interval, as text."""
    glossary, rows = read_glossary(comparison.metrics), {}
    for name, change in comparison.metrics.items():
        if entry := glossary.get(name):
            style = entry.get("format", ".2%")
            before, now = (format(value, style) for value in (change.incumbent, change.candidate))
            ends = " to ".join(f"{100 * end:+.2f}" for end in change.interval or ())
            rows[name] = entry["title"], before, now, f"{100 * change.difference:+.2f}", ends
    return rows


def read_glossary(names: Iterable[str] = ()) -> dict[str, dict[str, str]]:
    """Return name -> "title", "meaning" and "format" (if not a percentage) of every metric.

    Args:
        names: Names of metrics; those on lists of pairs are added at the end.
    """
    found: dict[str, dict[str, str]] = tomllib.loads(
        Path(__file__).with_name("metrics.toml").read_text(encoding="utf-8")
    )
    for name in names:
        if match := _OF_PAIRS.fullmatch(name):
            entry = found.get(f"pairs_NAME_{match[2]}") or found[match[2]]
            found[name] = {**entry, "title": f"{match[1]}: {entry['title']}"}
    return found


def _figures(
    result: EvaluationResult, classes: list[str], curves: Sequence[dict[str, float]]
) -> Iterator[tuple[str, Figure]]:
    """Yield (name, figure), without figures that have no data."""
    table, pairs, metrics = result.confusion, result.pairs, result.metrics
    if (training := plots.training_curves(curves)) is not None:
        yield "training_curves", training
    names = [classes[label] for label in table.labels]
    yield "confusion_matrix", plots.confusion_matrix(table.counts, names)
    if table.total.any():
        yield "class_accuracy", plots.class_accuracy(table.right, table.total, classes)
    if "eer" in metrics:
        fars = {f"tar_at_far_{name}": far for name, far in FARS.items()}
        marks = {far: metrics[name] for name, far in fars.items() if name in metrics}
        yield "roc", plots.roc_curve(pairs.roc(), metrics["eer"], marks)
    yield (
        "similarity_histogram",
        plots.similarity_histogram(pairs.same, pairs.different, metrics["threshold"]),
    )
    answers = result.per_query
    if answers.quality is not None and (known_Q := answers.known).any():
        error_Q = error_versus_reject(~answers.correct[known_Q], answers.quality[known_Q])
        yield "error_versus_reject", plots.error_versus_reject(error_Q)
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
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
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


def make_thumbnail(pixels_HWC: npt.NDArray[np.uint8]) -> str:
    """Return an image as a WebP data URI; small images are encoded without loss."""
    picture = Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC)
    small = max(picture.size) <= _THUMBNAIL
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=small, quality=85)
    return data_uri(buffer.getvalue(), "webp")
