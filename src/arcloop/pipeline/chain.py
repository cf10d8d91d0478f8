"""What a verb does: the steps it needs, each skipped where its artifact is there already."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.display.terminal import print_line
from arcloop.errors import ArtifactError
from arcloop.pipeline import steps
from arcloop.pipeline.summary import print_summary

CHAINS: Mapping[str, tuple[str, ...]] = {
    "prepare": ("prepare",),
    "validate": ("prepare", "validate"),
    "train": ("prepare", "validate", "train"),
    "embed": ("embed",),
    "index": ("index",),
    "evaluate": ("evaluate",),
    "export": ("export",),
    "run": ("prepare", "validate", "train", "embed", "index", "evaluate"),
}
"""Verb -> the steps that lead to it. `FROM_RUN` of launch.py start from a finished run."""


@dataclass(frozen=True)
class Outcome:
    """What a verb came to.

    Attributes:
        objective: Best monitored metric of val, where something was trained.
        gate_passed: The gate's verdict, where it was decided.
    """

    objective: float | None = None
    gate_passed: bool | None = None


def execute(verb: str, config: DictConfig, overrides: Sequence[str]) -> Outcome:
    """Carry out a verb with a composed and checked config.

    Args:
        verb: A key of `CHAINS`.
        config: The config.
        overrides: What it was composed from, recorded in the run.

    Raises:
        ArcloopError: What is wrong.
    """
    names = CHAINS[verb]
    # The imports of torch and Lightning make half a million objects that stay. Searching them for
    # cycles takes a fifth of the import time: docs/performance.md, start-up, first training step.
    gc.disable()
    try:
        steps.rehearse(config, names)
    finally:
        gc.enable()
    run_dir = Path(config.run_dir)
    folders = {
        **_store_folders(config, names, run_dir),
        "run": run_dir,
        "gallery": run_dir / "gallery",
        "index": run_dir / "index",
        "evaluation": run_dir / "evaluation",
        "export": run_dir / "export",
    }
    made: dict[str, Artifact] = {}
    for name in names:
        step = steps.ALL_STEPS[name]
        inputs = {role: folders[role] for role in step.inputs}
        reuse = name != verb  # what the verb itself names is done again
        made[name] = steps.apply(name, config, inputs, folders[step.output], overrides, reuse=reuse)
    if "evaluate" in made:
        print_summary(folders)
        return Outcome(_objective(made), made["evaluate"].info["gate"]["passed"])
    for artifact in made.values():
        print_line(f"{artifact.kind}: {artifact.path}")
    return Outcome(_objective(made))


def _store_folders(config: DictConfig, names: Sequence[str], run_dir: Path) -> dict[str, Path]:
    if not any("store" in steps.ALL_STEPS[name].inputs for name in names) and names != ("prepare",):
        return {}
    store = store_path(config) if "prepare" in names else find_store(run_dir)
    return {"store": store, "validation": store / "validation"}


def _objective(made: Mapping[str, Artifact]) -> float | None:
    return made["train"].info["objective"] if "train" in made else None


def store_path(config: DictConfig) -> Path:
    """Return where the store of this config is, or will be.

    Raises:
        ConfigError, DataError: The source is not there.
    """
    if config.store_dir is not None:
        return Path(config.store_dir)
    from arcloop.data import store_key

    source = steps.build(config, "data")
    return Path(config.stores_dir) / f"{source.name}-{store_key(source)}"


def find_store(run_dir: Path) -> Path:
    """Return the store that a run was trained on, known by its hash.

    Raises:
        ArtifactError: There is no run, or its store is not there any more.
    """
    run = artifacts.load(run_dir, "run")
    sha256 = run.parents["store"]
    named = run.config["store_dir"]
    folders = [Path(named).parent] if named else [Path(run.config["stores_dir"])]
    for folder in folders:
        if found := artifacts.find_by_hash(folder, "store", sha256):
            return found
    raise ArtifactError(
        f"the store that this run was trained on ({sha256[:12]}...) is not there",
        where=folders[0],
        remedy="run `arcloop prepare` with the run's overrides, from the same folder",
    )
