"""How long each stage took and how fast it was: beside the manifest, which is free of times."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from arcloop.artifacts.atomic import write_json

_FILE = ".timing.json"
_STAGE = {
    "store": "prepare", "validation": "validate", "run": "train", "gallery": "embed",
    "index": "index", "evaluation": "evaluate", "export": "export",
}  # fmt: skip


class Stopwatch:
    """Counts seconds of wall time from when it is made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since."""
        return time.monotonic() - self._start


def note(
    folder: Path, seconds: float, per_second: float, others: Mapping[str, float] | None = None
) -> None:
    """Note how long the artifact in `folder` took, and its throughput (0: nothing was counted).

    Args:
        folder: Of the artifact.
        seconds: Of wall time.
        per_second: Images or vectors a second.
        others: Other times worth a note; the name of each ends with its unit.
    """
    write_json(folder / _FILE, {"seconds": seconds, "per_second": per_second, **(others or {})})


def stage_times(folders: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Say what was noted for each stage.

    The throughput of training counts its batches alone, without validation.

    Args:
        folders: Kind of artifact -> its folder.

    Returns:
        (stage, "seconds, throughput") of the stages that were timed, in the order given.
    """
    found = []
    for kind, folder in folders.items():
        try:
            noted = json.loads((folder / _FILE).read_bytes())
        except (OSError, ValueError):
            continue
        unit = "vectors" if kind == "index" else "images"
        speed = f", {noted['per_second']:,.0f} {unit}/s" if noted["per_second"] else ""
        found.append((_STAGE[kind], f"{noted['seconds']:.1f} s{speed}"))
    return found
