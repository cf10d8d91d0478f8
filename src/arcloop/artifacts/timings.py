"""The duration and throughput of each stage, next to the manifest, which contains no times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from arcloop.artifacts.atomic import write_json

_TIMING = ".timing.json"
_STAGE = {
    "store": "prepare", "validation": "validate", "run": "train", "gallery": "embed",
    "index": "index", "evaluation": "evaluate", "export": "export",
}  # fmt: skip


def record_timing(
    folder: Path, seconds: float, per_second: float, others: Mapping[str, float] | None = None
) -> None:
    """Record the duration and throughput of the stage that made an artifact.

    Args:
        folder: Folder of the artifact.
        seconds: Wall time.
        per_second: Images or vectors per second; 0 if they were not counted.
        others: Additional durations; each name ends with its unit.
    """
    write_json(folder / _TIMING, {"seconds": seconds, "per_second": per_second, **(others or {})})


def read_timing(folder: Path) -> dict[str, float]:
    """Return what `record_timing` recorded of an artifact; empty if there is no record."""
    try:
        recorded: dict[str, float] = json.loads((folder / _TIMING).read_bytes())
    except (OSError, ValueError):
        return {}
    return recorded


def describe_stages(folders: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Describe the recorded durations, e.g. ("train", "12.3 s, 4,567 images/s").

    The throughput of training counts training batches only, without validation.

    Args:
        folders: Kind of artifact -> its folder.

    Returns:
        (stage, description) of the stages with a record, in the order given.
    """
    found = []
    for kind, folder in folders.items():
        if not (recorded := read_timing(folder)):
            continue
        unit = "vectors" if kind == "index" else "images"
        speed = f", {recorded['per_second']:,.0f} {unit}/s" if recorded["per_second"] else ""
        found.append((_STAGE[kind], f"{recorded['seconds']:.1f} s{speed}"))
    return found
