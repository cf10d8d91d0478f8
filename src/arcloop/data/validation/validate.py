"""Validates a store and writes report.json and report.html."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import file_lock, write_bytes, write_json
from arcloop.artifacts.writer import write_artifact
from arcloop.data.splits import SPLITS
from arcloop.data.validation.inspection import Inspection, inspect_store
from arcloop.data.validation.report import Finding, Findings, render_page
from arcloop.display.terminal import track
from arcloop.errors import DataError

if TYPE_CHECKING:
    from arcloop.config.schema import ValidationSettings

_LISTED_IN_ERROR = 10


def validate(
    store_path: Path, output: Path, settings: ValidationSettings, *, reuse: bool = False
) -> Artifact:
    """Read a whole store and report all faults at once.

    The report is also written if there are errors; its `info["passed"]` is then False.

    Args:
        store_path: Folder of the `store`; the store may be damaged.
        output: Folder of the `validation` to write: report.json and report.html.
        settings: Conditions that the store must satisfy.
        reuse: Return the validation at `output` if it passed for the same store and settings.

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
    if errors := findings.count("error"):
        listed = findings.of_level("error")[:_LISTED_IN_ERROR]
        lines = [str(finding) for finding in listed]
        if errors > len(listed):
            lines.append(f"and {errors - len(listed)} more")
        raise DataError(
            f"the store has {errors} error(s):" + "".join(f"\n    {line}" for line in lines),
            where=store_path,
            remedy=f"see {output / 'report.html'}; correct the source, delete the store and"
            " prepare it again",
        )
    return artifacts.load(output, "validation")


def _write_validation(store: Artifact, output: Path, settings: ValidationSettings) -> Findings:
    config = {"validation": asdict(settings)}
    with write_artifact(
        output, "validation", config=config, parents={"store": store.sha256}
    ) as writer:
        rows = sum(facts["rows"] for facts in store.info["splits"].values())
        with track("validate", rows) as advance:
            inspection = inspect_store(store, settings, advance)
        findings = inspection.findings
        check_classes(inspection, settings)
        errors, warnings = findings.count("error"), findings.count("warning")
        writer.info |= {"passed": errors == 0, "errors": errors, "warnings": warnings}
        writer.count = rows
        report = _make_report(store, inspection)
        write_json(writer.path / "report.json", report)
        page = render_page(report, inspection.samples)
        write_bytes(writer.path / "report.html", page.encode())
    return findings


def check_classes(inspection: Inspection, settings: ValidationSettings) -> None:
    """Report classes with too few images, classes in two splits, and imbalance.

    A class in `val` needs two images because `val` is evaluated by leave-one-out nearest
    neighbours; so does a class in `gallery` if gallery is also the query split. A class of `query`
    must be in `gallery`, otherwise no query of it can be answered correctly.
    """
    findings, counts, names = inspection.findings, inspection.counts, inspection.classes
    is_train = np.arange(len(names)) < inspection.num_train_classes
    expected = _expected_classes(inspection, is_train)
    required = {
        "train": settings.min_images_per_class,
        "val": 2,
        "gallery": 2 if inspection.leave_one_out else 1,
    }
    for split, minimum in required.items():
        for label in np.flatnonzero(expected[split] & (counts[split] < minimum)):
            message = f"class {names[label]!r} has {counts[split][label]} image(s); at least"
            message += f" {minimum} are needed"
            findings.add(Finding("error", "class size", message, split))
    is_in_split = {split: counts[split] > 0 for split in SPLITS}
    is_missing = ~np.any(list(is_in_split.values()), axis=0)
    for label in np.flatnonzero(is_missing & ~is_train):
        findings.add(Finding("error", "class size", f"class {names[label]!r} has no images"))
    for label in np.flatnonzero(expected["gallery"] & ~is_in_split["query"]):
        message = f"class {names[label]!r} has no images, so it is not evaluated"
        findings.add(Finding("warning", "class size", message, "query"))
    if not is_train.all():
        _report_shared_classes(names, is_in_split, findings)
    smallest, largest = int(counts["train"][is_train].min()), int(counts["train"].max())
    if largest > settings.max_imbalance * smallest:
        message = f"the largest class has {largest} images, the smallest {smallest}"
        findings.add(Finding("warning", "imbalance", message, "train"))


def _expected_classes(
    inspection: Inspection, is_train: npt.NDArray[np.bool_]
) -> dict[str, npt.NDArray[np.bool_]]:
    """Return whether a split must contain each class, [C]; in disjoint splits, only its own."""
    if is_train.all():
        return dict.fromkeys(SPLITS, is_train)
    counts = inspection.counts
    is_evaluated = (counts["gallery"] > 0) | (counts["query"] > 0)
    return {
        "train": is_train,
        "val": ~is_train & (counts["val"] > 0),
        "gallery": ~is_train & is_evaluated,
    }


def _report_shared_classes(
    names: list[str], is_in_split: dict[str, npt.NDArray[np.bool_]], findings: Findings
) -> None:
    """Report classes that are in more than one of train, val, and gallery or query."""
    is_evaluated = is_in_split["gallery"] | is_in_split["query"]
    parts = [is_in_split["train"], is_in_split["val"], is_evaluated]
    for label in np.flatnonzero(np.sum(parts, axis=0) > 1):
        found_in = ", ".join(split for split in SPLITS if is_in_split[split][label])
        message = f"class {names[label]!r} is in {found_in}, but class-disjoint splits share no"
        findings.add(Finding("error", "class overlap", f"{message} class"))


def _make_report(store: Artifact, inspection: Inspection) -> dict[str, Any]:
    findings = inspection.findings
    return {
        "passed": findings.count("error") == 0,
        "store": {"key": store.info["key"], "manifest": store.sha256},
        "image_shape": store.info["image_shape"],
        "skipped": store.info["skipped"],
        "splits": store.info["splits"],
        "classes": {
            name: {split: int(inspection.counts[split][label]) for split in SPLITS}
            for label, name in enumerate(inspection.classes)
        },
        "counts": [
            {"level": level, "check": check, "count": count}
            for (level, check), count in sorted(findings.counts.items())
        ],
        "errors": [asdict(finding) for finding in findings.of_level("error")],
        "warnings": [asdict(finding) for finding in findings.of_level("warning")],
    }
