"""Validates a store and writes report.json and report.html.

`files` finds damaged files, labels and images, `inspection` finds constant, dark and equal images,
and `check_classes` finds faults of the classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import file_lock, write_bytes, write_json
from arcloop.artifacts.writer import write_artifact
from arcloop.data.sources import similar_names
from arcloop.data.splits import SPLITS
from arcloop.data.store.shards import Images
from arcloop.data.validation.findings import Finding, Findings
from arcloop.data.validation.inspection import Inspection, inspect_store
from arcloop.display.html import data_uri, render_template
from arcloop.display.terminal import print_line, track
from arcloop.errors import DataError
from arcloop.runtime.images import encode_png

if TYPE_CHECKING:
    from arcloop.config.schema import ValidationSettings

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_MAX_BARS = 60
_MANY = np.iinfo(np.int64).max
_THUMBNAIL_SIDE = 64


def validate(
    store_path: Path, output: Path, settings: ValidationSettings, *, reuse: bool = False
) -> Artifact:
    """Read a whole store, report all faults at once, and print the first warnings of each check.

    The report is also written if there are errors; its `info["passed"]` is then False.

    Args:
        store_path: Folder of the `store`; the store may be damaged.
        output: Folder of the `validation` to write: report.json and report.html.
        settings: Conditions that the store must meet.
        reuse: Return the validation at `output` if it passed with the same store and settings.

    Raises:
        DataError: There are errors. The message lists the first ones and the path of report.html.
        ArtifactError: There is no store at `store_path`.
    """
    store = artifacts.read(store_path, "store")
    config = {"validation": asdict(settings)}

    def find_passed() -> Artifact | None:
        done = artifacts.load_if_current(output, "validation", config, {"store": store.sha256})
        return done if done and done.info["passed"] else None

    if reuse and (done := find_passed()):
        return done
    with file_lock(output):  # one process of the node validates, the others wait
        if reuse and (done := find_passed()):
            return done
        findings = _write_validation(store, output, settings)
    for (level, check), count in sorted(findings.counts.items()):
        if level == "warning":
            found = [finding for finding in findings.of_level(level) if finding.check == check]
            page = output / "report.html"
            print_line(f"warning: {check}: {count}, see {page}{_list(found, count, 3)}")
    if errors := findings.count("error"):
        remedy = "correct the source or its splits, delete the store and prepare it again"
        if findings.counts[("error", "leak")] and "on_duplicate" in store.config:
            remedy = f"data.on_duplicate=drop keeps one of equal pictures; or {remedy}"
        raise DataError(
            f"the store has {errors} error(s):{_list(findings.of_level('error'), errors, 10)}",
            where=store_path,
            remedy=f"see {output / 'report.html'}; {remedy}",
        )
    return artifacts.load(output, "validation")


def _list(findings: Sequence[Finding], count: int, limit: int) -> str:
    lines = [str(finding) for finding in findings[:limit]]
    if count > len(lines):
        lines.append(f"and {count - len(lines)} more")
    return "".join(f"\n    {line}" for line in lines)


def _write_validation(store: Artifact, output: Path, settings: ValidationSettings) -> Findings:
    config = {"validation": asdict(settings)}
    with write_artifact(
        output, "validation", config=config, parents={"store": store.sha256}
    ) as writer:
        rows = sum(store.info["splits"][split]["rows"] for split in _stored_splits(store))
        with track("validate", rows) as advance:
            inspection = inspect_store(store, settings, advance)
        findings = inspection.findings
        check_classes(inspection, settings)
        if inspection.num_train_classes == 1:
            message = f"{inspection.classes[0]!r} is the only class, so all answers are correct"
            findings.add(Finding("warning", "class size", message, "train"))
        errors, warnings = findings.count("error"), findings.count("warning")
        writer.info |= {"passed": errors == 0, "errors": errors, "warnings": warnings}
        writer.count = rows
        report = _make_report(store, inspection)
        if unknown := report["query_only"]["classes"]:
            print_line(
                f"validate: {unknown} classes are only in query: their"
                f" {report['query_only']['images']} images are queries of something unknown"
            )
        write_json(writer.path / "report.json", report)
        page = render_page(report, inspection.samples, findings)
        write_bytes(writer.path / "report.html", page.encode())
    return findings


def _stored_splits(store: Artifact) -> Sequence[str]:
    """Return the splits whose rows are stored: with leave-one-out, query is the gallery."""
    return SPLITS[:-1] if store.info.get("leave_one_out", False) else SPLITS


def check_classes(inspection: Inspection, settings: ValidationSettings) -> None:
    """Report classes with too few images, in two splits or with similar names, and imbalance.

    A class in `val` needs two images because `val` is evaluated by leave-one-out nearest
    neighbours; so does a class in `gallery` if gallery is also the query split. A class of `query`
    that is in `train` or `val` must be in `gallery`; otherwise none of its queries can be answered
    correctly. A class that is only in `query` is allowed: its images are queries of something
    unknown.
    """
    findings, counts, names = inspection.findings, inspection.counts, inspection.classes
    is_train = np.arange(len(names)) < inspection.num_train_classes
    has = {split: counts[split] > 0 for split in SPLITS}
    is_evaluated = has["gallery"] | has["query"]
    expected = dict.fromkeys(SPLITS, is_train)  # classes that a split must contain
    if inspection.split != "stratified":
        is_gallery = ~is_train & is_evaluated & ~inspection.is_unknown
        expected |= {"val": ~is_train & has["val"], "gallery": is_gallery}
    required = {
        "train": settings.min_images_per_class,
        "val": 2,
        "gallery": 2 if inspection.leave_one_out else 1,
    }
    for split, minimum in required.items():
        for label in np.flatnonzero(expected[split] & (counts[split] < minimum)):
            message = f"class {names[label]!r} has {counts[split][label]} image(s); at least"
            message += f" {minimum} are needed"
            if split == "train":
                message += " (validation.min_images_per_class)"
            findings.add(Finding("error", "class size", message, split))
    is_missing = ~np.any(list(has.values()), axis=0)
    for label in np.flatnonzero(is_missing & ~is_train):
        findings.add(Finding("error", "class size", f"class {names[label]!r} has no images"))
    for label in np.flatnonzero(expected["gallery"] & ~has["query"]):
        message = f"class {names[label]!r} has no images, so it is not evaluated"
        findings.add(Finding("warning", "class size", message, "query"))
    for message in similar_names(names):
        findings.add(Finding("warning", "similar names", message))
    num_parts = np.sum([has["train"], has["val"], is_evaluated], axis=0)
    for label in np.flatnonzero((inspection.split == "disjoint") & (num_parts > 1)):
        found_in = ", ".join(split for split in SPLITS if has[split][label])
        message = f"class {names[label]!r} is in {found_in}, but class-disjoint splits share no"
        findings.add(Finding("error", "class overlap", f"{message} class"))
    smallest, largest = counts["train"][is_train].min(initial=_MANY), counts["train"].max()
    if largest > settings.max_imbalance * smallest:
        message = f"the largest class has {largest} images, the smallest {smallest}"
        findings.add(Finding("warning", "imbalance", message, "train"))


def _make_report(store: Artifact, inspection: Inspection) -> dict[str, Any]:
    findings = inspection.findings
    return {
        "passed": findings.count("error") == 0,
        "store": {"key": store.info["key"], "manifest": store.sha256},
        "image_shape": store.info["image_shape"],
        "skipped": store.info["skipped"],
        "passed_over": store.info.get("passed_over", []),
        "notices": store.info.get("notices", []),
        "splits": store.info["splits"],
        "leave_one_out": inspection.leave_one_out,
        "classes": {
            name: {split: int(inspection.counts[split][label]) for split in _stored_splits(store)}
            for label, name in enumerate(inspection.classes)
        },
        "query_only": {
            "classes": int(inspection.is_unknown.sum()),
            "images": int(inspection.counts["query"][inspection.is_unknown].sum()),
        },
        "counts": [
            {"level": level, "check": check, "count": count}
            for (level, check), count in sorted(findings.counts.items())
        ],
        "errors": [asdict(finding) for finding in findings.of_level("error")],
        "warnings": [asdict(finding) for finding in findings.of_level("warning")],
    }


def render_page(
    report: Mapping[str, Any], samples: Mapping[int, Sequence[Images]], findings: Findings
) -> str:
    """Return report.html, a self-contained page.

    Args:
        report: Content of report.json.
        samples: Label -> training images [H, W, C] to show.
        findings: The findings to list.
    """
    stored = SPLITS[:-1] if report["leave_one_out"] else SPLITS
    totals = {name: sum(counts.values()) for name, counts in report["classes"].items()}
    names = sorted(totals, key=lambda name: -totals[name])
    num_hidden = max(0, len(names) - _MAX_BARS)
    return render_template(
        _TEMPLATE,
        report=report,
        splits=stored,
        total=sum(report["splits"][split]["rows"] for split in stored),
        listed=[
            (finding, [_thumbnail(image) for image in findings.pictures.get(finding, ())])
            for finding in findings.listed
        ],
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
