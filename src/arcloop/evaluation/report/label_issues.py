"""Files of `arcloop check-labels`: a page with pictures and a CSV file."""

from __future__ import annotations

import csv
import itertools
import os
from pathlib import Path

import numpy as np

from arcloop.data.sources.store_fold import StoredImages
from arcloop.data.store.source_files import StoreContents
from arcloop.display.html import render_template
from arcloop.display.terminal import format_similarity
from arcloop.evaluation.label_issues import LabelIssues
from arcloop.evaluation.report.page import PIXELATED, make_thumbnail
from arcloop.retrieval.embed import Labels

CSV = "label_issues.csv"
_COLUMNS = (
    "file", "label", "suggested_label", "score", "nearest_file", "similarity",
    "similarity_same_label",
)  # fmt: skip


def write_label_issues(
    folder: Path,
    issues: LabelIssues,
    images: StoredImages,
    *,
    title: str,
    top: int,
    checked: int,
    folds: int,
    left_out: str,
) -> None:
    """Write label_issues.csv with all issues, and report.html with the first ones.

    Args:
        folder: Existing folder for the files.
        issues: The issues, most suspicious first.
        images: The images.
        title: Headline of the page.
        top: Number of issues on the page.
        checked: Number of images that were checked.
        folds: Number of folds.
        left_out: Sentence on the images that were not checked; may be empty.
    """
    contents = StoreContents.read(images.store.artifact)
    classes, labels = images.store.classes, images.labels

    def name(number: int) -> str:
        if contents is None:
            return "{} row {}".format(*images.locate(number))
        return os.fsdecode(contents.files["path"][number])

    def picture(number: int) -> str:
        return make_thumbnail(images.read(np.array([number]))[0])

    def describe(number: int, other: float, same: float, neighbours: Labels) -> dict[str, str]:
        return {
            "file": name(number),
            "label": classes[labels[number]],
            "suggested_label": classes[labels[neighbours[0]]],
            "score": f"{other - same:.4f}",
            "nearest_file": name(neighbours[0]),
            "similarity": format_similarity(other),
            "similarity_same_label": format_similarity(same),
        }

    with open(folder / CSV, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(describe(*issue) for issue in zip(*issues, strict=True))
    shown = [
        {
            **describe(*issue),
            "picture": picture(issue[0]),
            "neighbours": [(name(n), classes[labels[n]], picture(n)) for n in issue[-1]],
        }
        for issue in itertools.islice(zip(*issues, strict=True), top)
    ]
    page = render_template(
        Path(__file__).with_name("label_issues.html.j2"),
        title=title,
        issues=shown,
        count=len(issues.numbers),
        checked=checked,
        folds=folds,
        left_out=left_out,
        num_neighbours=issues.neighbours.shape[1],
        pixelated=max(images.store.image_shape) <= PIXELATED,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
