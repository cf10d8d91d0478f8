"""The chain of steps of each verb, and the summary that is printed after the evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.writer import describe_stages
from arcloop.display.terminal import print_line, result_console
from arcloop.errors import ArtifactError
from arcloop.pipeline import steps

_UP_TO_TRAIN = ("prepare", "validate", "train")
CHAINS: Mapping[str, tuple[str, ...]] = {
    "prepare": _UP_TO_TRAIN[:1],
    "validate": _UP_TO_TRAIN[:2],
    "train": _UP_TO_TRAIN,
    # The callbacks of `train` make these artifacts. If the run is already trained, the steps update
    # artifacts whose settings have changed.
    "run": (*_UP_TO_TRAIN, *steps.AFTER_TRAINING),
    **{name: (name,) for name in (*steps.AFTER_TRAINING, "export")},
}
"""Verb -> its steps, in order. A step is skipped if its artifact is up to date."""
FROM_RUN = (*steps.AFTER_TRAINING, "export")
"""Verbs that work on a finished run and start from its recorded overrides."""
_SUMMARY_METRICS = (
    "top1", "recall_at_1", "recall_at_5", "recall_at_10", "map_at_r", "eer", "pair_accuracy",
    "index_recall_at_10",
)  # fmt: skip


@dataclass(frozen=True)
class VerbResult:
    """Result of a verb.

    Attributes:
        objective: Best value of the monitored metric on val; None if nothing was trained.
        gate_passed: Decision of the gate; None if nothing was evaluated.
    """

    objective: float | None = None
    gate_passed: bool | None = None


def run_verb(verb: str, config: DictConfig, overrides: Sequence[str]) -> VerbResult:
    """Run the steps of a verb with a composed and checked config.

    Args:
        verb: A key of `CHAINS`.
        config: The config.
        overrides: Overrides that the config was composed from; a run records them.

    Raises:
        ArcloopError: The config or the data is invalid, or a resource is not available.
    """
    names = CHAINS[verb]
    steps.dry_run(config, names)
    run_dir = Path(config.run_dir)
    folders = {
        **_store_folders(config, names, run_dir),
        "run": run_dir,
        "gallery": run_dir / "gallery",
        "index": run_dir / "index",
        "evaluation": run_dir / "evaluation",
        "export": run_dir / "export",
    }
    outputs: dict[str, Artifact] = {}
    for name in names:
        step = steps.ALL_STEPS[name]
        inputs = {role: folders[role] for role in step.inputs}
        reuse = name != verb  # the step with the name of the verb always runs
        outputs[name] = steps.apply(
            name, config, inputs, folders[step.output], overrides, reuse=reuse
        )
    objective = outputs["train"].info["objective"] if "train" in outputs else None
    if "evaluate" in outputs:
        print_summary(folders)
        return VerbResult(objective, outputs["evaluate"].info["gate"]["passed"])
    for artifact in outputs.values():
        print_line(f"{artifact.kind}: {artifact.path}")
    return VerbResult(objective)


def _store_folders(config: DictConfig, names: Sequence[str], run_dir: Path) -> dict[str, Path]:
    if not any("store" in steps.ALL_STEPS[name].inputs for name in names) and names != ("prepare",):
        return {}
    store = store_path(config) if "prepare" in names else find_store(run_dir)
    return {"store": store, "validation": store / "validation"}


def store_path(config: DictConfig) -> Path:
    """Return the folder of the store for this config; it need not exist.

    Raises:
        ConfigError, DataError: The source does not exist.
    """
    if config.store_dir is not None:
        return Path(config.store_dir)
    from arcloop.data import store_key

    source = steps.build(config, "data")
    return Path(config.stores_dir) / f"{source.name}-{store_key(source)}"


def find_store(run_dir: Path) -> Path:
    """Return the store that a run was trained on, identified by its hash.

    The recorded folder of the stores may be relative. It is searched for in the current directory
    and in the directory in which the run was made.

    Args:
        run_dir: The run.

    Raises:
        ArtifactError: The run does not exist, or its store was moved or removed.
    """
    run = artifacts.load(run_dir, "run")
    sha256 = run.parents["store"]
    named = run.config["store_dir"]
    folder = Path(named).parent if named else Path(run.config["stores_dir"])
    made_in = run_dir.resolve()
    for _ in Path(run.config["run_dir"]).parts:
        made_in = made_in.parent
    for root in (Path(), made_in):
        if found := artifacts.find_by_hash(root / folder, "store", sha256):
            return found
    raise ArtifactError(
        f"the store that this run was trained on ({sha256[:12]}...) was not found",
        where=folder,
        remedy="run `arcloop prepare` with the overrides of the run, in the directory where it was"
        " trained",
    )


def print_summary(folders: Mapping[str, Path]) -> None:
    """Print metrics, times, index size, the decision of the gate and the path of the report.

    Args:
        folders: Folder of each artifact of the run, by kind.
    """
    evaluation = folders["evaluation"]
    metrics: dict[str, Any] = json.loads((evaluation / "metrics.json").read_bytes())
    decision = json.loads((evaluation / "gate.json").read_bytes())
    table = Table(title=str(folders["run"]), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name in _SUMMARY_METRICS:
        if name in metrics:
            table.add_row(name, f"{metrics[name]:.4f}")
    table.add_section()
    for stage, figures in describe_stages(folders):
        table.add_row(stage, figures)
    table.add_section()
    index = artifacts.load(folders["index"], "index")
    size = index.info["bytes"] / 2**20
    table.add_row("index", f"{index.info['rows']:,} rows, {size:.1f} MiB")
    table.add_row("gate", "passed" if decision["passed"] else "NOT PASSED")
    for reason in decision["reasons"]:
        table.add_row("", reason)
    table.add_row("report", str(evaluation / "report.html"))
    result_console().print(table)
