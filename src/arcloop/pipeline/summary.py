"""What was measured of a finished run: the summary of an evaluation, and the values of a job."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.table import Table

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.metrics import is_pair_list_accuracy, read_intervals, read_metrics
from arcloop.artifacts.timings import describe_stages, read_timing
from arcloop.display.terminal import result_console

OTHER_DATA = "other_data"
"""Folder in the run for the evaluations of other data."""
_SUMMARY_METRICS = (
    "top1", "recall_at_1", "recall_at_5", "recall_at_10", "map_at_r", "eer", "pair_accuracy",
    "index_recall_at_10",
)  # fmt: skip


def measurements(made: Iterable[Artifact], folders: Mapping[str, Path]) -> dict[str, float]:
    """Return what a leaderboard compares of artifacts that were made from finished runs.

    Args:
        made: The artifacts.
        folders: Folder of each artifact of the run, by kind; an evaluation refers to the index.

    Returns:
        Name -> value: the metrics of an evaluation with the size of its index and the times of a
        search, the sizes of exported files, and the throughput of an embedding.
    """
    found: dict[str, float] = {}
    for artifact in made:
        timing = read_timing(artifact.path)
        if artifact.kind == "evaluation":
            index = artifacts.read(folders["index"], "index")
            times = {name: value for name, value in timing.items() if name.startswith("search_")}
            found |= {**read_metrics(artifact.path), "index_bytes": index.info["bytes"], **times}
        elif artifact.kind == "export":
            found |= {f"{name}_bytes": file["size"] for name, file in artifact.files.items()}
        elif artifact.kind == "gallery":
            found["images_per_second"] = timing["per_second"]
    return found


def print_summary(folders: Mapping[str, Path]) -> None:
    """Print metrics, times, index size, the decision of the gate and the path of the report.

    Args:
        folders: Folder of each artifact of the run, by kind.
    """
    evaluation = folders["evaluation"]
    metrics, intervals = read_metrics(evaluation), read_intervals(evaluation)
    decision = json.loads((evaluation / "gate.json").read_bytes())
    run, is_other = folders["run"], OTHER_DATA in evaluation.parts
    title = f"{run}, evaluated on {folders['store']}" if is_other else str(run)
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name in _SUMMARY_METRICS:
        if name in metrics:
            ends = "({:.4f}-{:.4f})".format(*intervals[name]) if name in intervals else ""
            table.add_row(name, f"{metrics[name]:.4f} {ends}")
    for name in filter(is_pair_list_accuracy, metrics):
        table.add_row(name, f"{metrics[name]:.4f} (std {metrics[f'{name}_std']:.4f})")
    table.add_section()
    for stage, figures in describe_stages(folders):
        table.add_row(stage, figures)
    table.add_section()
    size = artifacts.load(folders["index"], "index").info["bytes"] / 2**20
    rows = f"{metrics['num_gallery']:,} rows"
    table.add_row("index", rows if is_other else f"{rows}, {size:.1f} MiB")
    table.add_row("gate", "passed" if decision["passed"] else "NOT PASSED")
    for reason in decision["reasons"]:
        table.add_row("", reason)
    table.add_row("report", str(evaluation / "report.html"))
    result_console().print(table)
