"""Renders report.html, a self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from arcloop.data.splits import SPLITS
from arcloop.data.store.shards import Images
from arcloop.display.html import data_uri, render_template
from arcloop.runtime.images import encode_png

_TEMPLATE = Path(__file__).with_name("page.html.j2")
_MAX_BARS = 60
_THUMBNAIL_SIDE = 64


@dataclass(frozen=True)
class Bar:
    """A bar of one class: total, split -> number of images, and split -> width in percent."""

    name: str
    total: int
    counts: Mapping[str, int]
    percent: Mapping[str, float]


def render_page(report: Mapping[str, Any], samples: Mapping[int, Sequence[Images]]) -> str:
    """Return the page as HTML.

    Args:
        report: Content of report.json.
        samples: Label -> training images [H, W, C] to show.
    """
    classes = list(report["classes"])
    bars, num_hidden = class_bars(report["classes"])
    return render_template(
        _TEMPLATE,
        report=report,
        splits=SPLITS,
        total=sum(facts["rows"] for facts in report["splits"].values()),
        bars=bars,
        num_hidden=num_hidden,
        checks=_group_by_check(report),
        samples=[
            (classes[label], [_thumbnail(image) for image in images])
            for label, images in samples.items()
            if images
        ],
    )


def class_bars(classes: Mapping[str, Mapping[str, int]]) -> tuple[list[Bar], int]:
    """Return the bars of the largest and the smallest classes, and the number of other classes."""
    totals = {name: sum(counts.values()) for name, counts in classes.items()}
    longest = max(1, *totals.values())
    names = sorted(totals, key=lambda name: -totals[name])
    num_hidden = max(0, len(names) - _MAX_BARS)
    if num_hidden:
        names = names[: _MAX_BARS // 2] + names[-_MAX_BARS // 2 :]
    bars = [
        Bar(
            name,
            totals[name],
            classes[name],
            {split: round(100 * count / longest, 3) for split, count in classes[name].items()},
        )
        for name in names
    ]
    return bars, num_hidden


def _group_by_check(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the listed findings and the number of all findings by level and check."""
    counts = {(entry["level"], entry["check"]): entry["count"] for entry in report["counts"]}
    checks = []
    for level in ("error", "warning"):
        ordered = sorted(report[f"{level}s"], key=lambda finding: finding["check"])
        for check, group in groupby(ordered, key=lambda finding: finding["check"]):
            count = counts[level, check]
            checks.append({"level": level, "check": check, "listed": list(group), "count": count})
    return checks


def _thumbnail(image: Images) -> str:
    if max(image.shape[:2]) > _THUMBNAIL_SIDE:
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        image = np.asarray(picture).reshape(picture.height, picture.width, image.shape[-1])
    return data_uri(encode_png(image), "png")
