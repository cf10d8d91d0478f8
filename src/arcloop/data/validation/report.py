"""Findings of a validation, and the reports that list them: report.json and report.html."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from arcloop.data.splits import SPLITS
from arcloop.data.store.shards import Images
from arcloop.display.html import data_uri, render_template
from arcloop.runtime.images import encode_png

Level = Literal["error", "warning"]

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_MAX_BARS = 60
_THUMBNAIL_SIDE = 64


@dataclass(frozen=True)
class Finding:
    """One error or warning.

    Attributes:
        level: An error fails the validation; a warning does not.
        check: Name of the check, e.g. "checksum".
        message: What is wrong.
        split: The split, if the finding concerns one split.
        file: Path of the file within the store, if the finding concerns one file.
        row: Row within the file, if the finding concerns one row.
    """

    level: Level
    check: str
    message: str
    split: str | None = None
    file: str | None = None
    row: int | None = None

    def __str__(self) -> str:
        location = self.file or self.split
        row = "" if self.row is None else f" row {self.row}"
        return f"{location}{row}: {self.message}" if location else self.message


@dataclass
class Findings:
    """Collects findings; counts all of them and keeps the first `max_listed` of each check."""

    max_listed: int
    listed: list[Finding] = field(default_factory=list)
    counts: Counter[tuple[Level, str]] = field(default_factory=Counter)

    def add(self, finding: Finding) -> None:
        """Add a finding."""
        key = finding.level, finding.check
        self.counts[key] += 1
        if self.counts[key] <= self.max_listed:
            self.listed.append(finding)

    def count(self, level: Level) -> int:
        """Return the number of findings of a level, listed or not."""
        return sum(count for (found, _), count in self.counts.items() if found == level)

    def of_level(self, level: Level) -> list[Finding]:
        """Return the listed findings of a level."""
        return [finding for finding in self.listed if finding.level == level]


def render_page(report: Mapping[str, Any], samples: Mapping[int, Sequence[Images]]) -> str:
    """Return report.html, a self-contained page.

    Args:
        report: Content of report.json.
        samples: Label -> training images [H, W, C] to show.
    """
    totals = {name: sum(counts.values()) for name, counts in report["classes"].items()}
    names = sorted(totals, key=lambda name: -totals[name])
    num_hidden = max(0, len(names) - _MAX_BARS)
    return render_template(
        _TEMPLATE,
        report=report,
        splits=SPLITS,
        total=sum(facts["rows"] for facts in report["splits"].values()),
        bars=names[: _MAX_BARS // 2] + names[-_MAX_BARS // 2 :] if num_hidden else names,
        longest=max(1, *totals.values()),
        num_hidden=num_hidden,
        samples=[
            (list(totals)[label], [_thumbnail(image) for image in images])
            for label, images in samples.items()
            if images
        ],
    )


def _thumbnail(image: Images) -> str:
    if max(image.shape[:2]) > _THUMBNAIL_SIDE:
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        image = np.asarray(picture).reshape(picture.height, picture.width, image.shape[-1])
    return data_uri(encode_png(image), "png")
