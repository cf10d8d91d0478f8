"""The page of a validation: one file that holds all it shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
_THUMBNAIL = 64


@dataclass(frozen=True)
class Bar:
    """Images of one class: split -> number, and its part of the bar in percent."""

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
    bars, hidden = class_bars(report["classes"])
    return render_template(
        _TEMPLATE,
        report=report,
        splits=SPLITS,
        total=sum(facts["rows"] for facts in report["splits"].values()),
        bars=bars,
        hidden=hidden,
        kinds=_by_kind(report),
        samples=[
            (classes[label], _thumbnails(images)) for label, images in samples.items() if images
        ],
    )


def class_bars(classes: Mapping[str, Mapping[str, int]]) -> tuple[list[Bar], int]:
    """Return a bar per class, largest first, and how many classes of the middle are left out."""
    totals = {name: sum(counts.values()) for name, counts in classes.items()}
    longest = max(1, *totals.values())
    names = sorted(totals, key=lambda name: -totals[name])
    hidden = max(0, len(names) - _MAX_BARS)
    if hidden:
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
    return bars, hidden


def _by_kind(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Faults by level and check, errors first, with how many there are beyond those listed."""
    counts = {(entry["level"], entry["check"]): entry["count"] for entry in report["counts"]}
    kinds = []
    for faults in (report["errors"], report["warnings"]):
        ordered = sorted(faults, key=lambda fault: fault["check"])
        for check, group in groupby(ordered, key=lambda fault: fault["check"]):
            listed = list(group)
            level = listed[0]["level"]
            kinds.append(
                {"level": level, "check": check, "listed": listed, "count": counts[level, check]}
            )
    return kinds


def _thumbnails(images: Iterable[Images]) -> list[str]:
    return [data_uri(encode_png(_shrink(image)), "png") for image in images]


def _shrink(image: Images) -> Images:
    if max(image.shape[:2]) <= _THUMBNAIL:
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    small = np.asarray(picture)
    return small.reshape(*small.shape[:2], image.shape[-1])
