"""The table that a run ends with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from arcloop import artifacts
from arcloop.artifacts.timings import describe_stages

_METRICS = (
    "top1", "recall_at_1", "recall_at_5", "recall_at_10", "map_at_r", "eer", "pair_accuracy",
    "index_recall_at_10",
)  # fmt: skip


def print_summary(folders: Mapping[str, Path]) -> None:
    """Print metrics, times, index size, the gate's verdict, and where the report is.

    Args:
        folders: Folder of each artifact of the run, by kind.
    """
    evaluation = folders["evaluation"]
    metrics: dict[str, Any] = json.loads((evaluation / "metrics.json").read_bytes())
    verdict = json.loads((evaluation / "gate.json").read_bytes())
    console = Console()
    table = Table(title=str(folders["run"]), title_justify="left", show_header=False)
    for name in _METRICS:
        if name in metrics:
            table.add_row(name, f"{metrics[name]:.4f}")
    table.add_section()
    for stage, figures in describe_stages(folders):
        table.add_row(stage, figures)
    table.add_section()
    index = artifacts.load(folders["index"], "index")
    size = index.info["bytes"] / 2**20
    table.add_row("index", f"{index.info['rows']:,} rows, {size:.1f} MiB")
    table.add_row("gate", "passed" if verdict["passed"] else "NOT PASSED")
    for reason in verdict["reasons"]:
        table.add_row("", reason)
    table.add_row("report", str(evaluation / "report.html"))
    console.print(table)
