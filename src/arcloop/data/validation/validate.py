"""Store -> validation: all faults at once, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import write_bytes, write_json
from arcloop.artifacts.locks import file_lock
from arcloop.artifacts.writer import write_artifact
from arcloop.data.splits import SPLITS
from arcloop.data.validation.findings import Fault
from arcloop.data.validation.inspection import Inspection, inspect
from arcloop.data.validation.page import render_page
from arcloop.display.terminal import track
from arcloop.errors import DataError

if TYPE_CHECKING:
    from arcloop.config.schema import ValidationSettings

_NAMED = 10


def validate(
    store_path: Path, output: Path, settings: ValidationSettings, *, reuse: bool = False
) -> Artifact:
    """Read a whole store and report all that is wrong with it.

    The report is written whatever it says; its `info["passed"]` is False when there is an error.

    Args:
        store_path: Folder of the `store`; it may be damaged.
        output: Folder of the `validation` to write: report.json and report.html.
        settings: What the store must satisfy.
        reuse: Return what is at `output` if the same store passed with the same settings.

    Raises:
        DataError: There are errors; it names the first of them and the page with all.
        ArtifactError: There is no store.
    """
    store = artifacts.read(store_path, "store")
    config = {"validation": asdict(settings)}
    parents = {"store": store.sha256}
    if reuse and (done := _passed_already(output, config, parents)):
        return done
    with file_lock(output):  # see prepare
        if reuse and (done := _passed_already(output, config, parents)):
            return done
        found = _inspect(store, output, settings)
    if errors := found.faults.total("error"):
        listed = found.faults.of("error")[:_NAMED]
        more = f"\n    and {errors - len(listed)} more" if errors > len(listed) else ""
        raise DataError(
            f"the store has {errors} error(s):"
            + "".join(f"\n    {fault}" for fault in listed)
            + more,
            where=store_path,
            remedy=f"see {output / 'report.html'}; mend the source, delete the store, prepare",
        )
    return artifacts.load(output, "validation")


def _passed_already(
    output: Path, config: dict[str, Any], parents: dict[str, str]
) -> Artifact | None:
    done = artifacts.load_if_current(output, "validation", config, parents)
    return done if done and done.info["passed"] else None


def _inspect(store: Artifact, output: Path, settings: ValidationSettings) -> Inspection:
    config = {"validation": asdict(settings)}
    with write_artifact(
        output, "validation", config=config, parents={"store": store.sha256}
    ) as writer:
        rows = sum(facts["rows"] for facts in store.info["splits"].values())
        with track("validate", rows) as advance:
            found = inspect(store, settings, advance)
        for fault in class_faults(found, settings):
            found.faults.add(fault)
        errors, warnings = found.faults.total("error"), found.faults.total("warning")
        writer.info |= {"passed": errors == 0, "errors": errors, "warnings": warnings}
        writer.count = rows
        report = _report(store, found)
        write_json(writer.path / "report.json", report)
        page = render_page(report, found.samples)
        write_bytes(writer.path / "report.html", page.encode())
    return found


def class_faults(found: Inspection, settings: ValidationSettings) -> Iterator[Fault]:
    """Yield what is wrong with the number of images of each class.

    `val` is judged by leave-one-out neighbours, so a class needs two images in it, and so is
    `gallery` where it is the query split too; what is not in the gallery cannot be found there.
    """
    trained = found.num_train_classes
    wanted = {
        "train": settings.min_images_per_class,
        "val": 2,
        "gallery": 2 if found.leave_one_out else 1,
    }
    belongs = _classes_of(found)
    for split, least in wanted.items():
        for label in np.flatnonzero(belongs[split] & (found.counts[split] < least)):
            yield _class_fault(
                found, label, split, f"{found.counts[split][label]} image(s); at least {least} are"
                " needed"
            )  # fmt: skip
    in_splits = np.stack([found.counts[split] > 0 for split in SPLITS])
    for label in np.flatnonzero(
        ~in_splits.any(axis=0) & (np.arange(len(found.classes)) >= trained)
    ):
        yield _class_fault(found, label, None, "no images")
    for label in np.flatnonzero(belongs["gallery"] & ~in_splits[SPLITS.index("query")]):
        yield replace(
            _class_fault(found, label, "query", "no images, so it is not judged"), level="warning"
        )
    yield from _shared_classes(found)
    smallest, largest = (
        int(bound) for bound in (found.counts["train"][:trained].min(), found.counts["train"].max())
    )
    if largest > settings.max_imbalance * smallest:
        yield Fault(
            level="warning",
            check="imbalance",
            message=f"the largest class has {largest} images, the smallest {smallest}",
            split="train",
        )


def _class_fault(found: Inspection, label: np.integer, split: str | None, what: str) -> Fault:
    message = f"class {found.classes[label]!r} has {what}"
    return Fault(level="error", check="class size", message=message, split=split)


def _classes_of(found: Inspection) -> dict[str, npt.NDArray[np.bool_]]:
    """Return which classes belong to a split: all, or with class-disjoint splits its own."""
    trained = np.arange(len(found.classes)) < found.num_train_classes
    if trained.all():
        return dict.fromkeys(SPLITS, trained)
    judged = (found.counts["gallery"] > 0) | (found.counts["query"] > 0)
    return {
        "train": trained,
        "val": ~trained & (found.counts["val"] > 0),
        "gallery": ~trained & judged,
    }


def _shared_classes(found: Inspection) -> Iterator[Fault]:
    """Yield the classes that are on two sides of class-disjoint splits."""
    if found.num_train_classes == len(found.classes):
        return
    there = {split: found.counts[split] > 0 for split in SPLITS}
    sides = [there["train"], there["val"], there["gallery"] | there["query"]]
    for label in np.flatnonzero(np.sum(sides, axis=0) > 1):
        within = ", ".join(split for split in SPLITS if there[split][label])
        yield Fault(
            level="error",
            check="class overlap",
            message=f"class {found.classes[label]!r} is in {within}, but the splits have no class"
            " in common",
        )


def _report(store: Artifact, found: Inspection) -> dict[str, Any]:
    return {
        "passed": found.faults.total("error") == 0,
        "store": {"key": store.info["key"], "manifest": store.sha256},
        "image_shape": store.info["image_shape"],
        "skipped": store.info["skipped"],
        "splits": store.info["splits"],
        "classes": {
            name: {split: int(found.counts[split][label]) for split in SPLITS}
            for label, name in enumerate(found.classes)
        },
        "counts": [
            {"level": level, "check": check, "count": count}
            for (level, check), count in sorted(found.faults.counts.items())
        ],
        "errors": [asdict(fault) for fault in found.faults.of("error")],
        "warnings": [asdict(fault) for fault in found.faults.of("warning")],
    }
