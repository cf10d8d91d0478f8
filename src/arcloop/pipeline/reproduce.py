"""`arcloop reproduce RUN_DIR`: the run again, from its own config, and what differs."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import sha256_file
from arcloop.config.composition import compose_config
from arcloop.display.terminal import print_line
from arcloop.errors import ConfigError
from arcloop.pipeline import steps
from arcloop.pipeline.chain import find_store

_COMPOSED = {"logger", "callbacks"}
_FOLLOWING = {"embed": "gallery", "index": "index", "evaluate": "evaluation"}


def reproduce(arguments: Sequence[str]) -> int:
    """Run again what a run was made by, and report "equal" or the first difference.

    Returns:
        0 if all is equal, 1 if anything differs.

    Raises:
        ArtifactError: The run is not whole, or its store is not there.
    """
    options = _parser().parse_args(arguments)
    original = Path(options.run_dir)
    again = Path(options.output or f"{original}-reproduced")
    run = artifacts.load(original, "run")
    if again.exists():
        raise ConfigError(
            "the folder for the second run is there already",
            where=again,
            remedy="remove it, or pass --output",
        )
    rerun(run, again)
    difference = first_difference(original, again)
    if difference is None:
        print(f"equal: {original}")
        if not options.keep:
            shutil.rmtree(again)
        return 0
    print(f"different: {difference}")
    print_line(f"the second run is in {again}")
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("arcloop reproduce", description=__doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a finished run")
    parser.add_argument("--output", metavar="DIR", help="where to run (RUN_DIR-reproduced)")
    parser.add_argument("--keep", action="store_true", help="keep it though all is equal")
    return parser


def rerun(run: Artifact, again: Path) -> None:
    """Make a run anew in another folder, and of its gallery, index and evaluation what it has."""
    store = find_store(run.path)
    config = _config(run, again)
    inputs = {"store": store, "run": again, "gallery": again / "gallery", "index": again / "index"}
    steps.apply("train", config, inputs, again, run.info["overrides"])
    for step, kind in _FOLLOWING.items():
        if artifacts.exists(run.path / kind):
            recorded = artifacts.read(run.path / kind, kind).config
            for name, values in recorded.items():
                before = {} if "_target_" in values else run.config[name]
                _take(config, name, {**before, **values})
            steps.apply(step, config, inputs, again / kind, reuse=True)


def _config(run: Artifact, again: Path) -> DictConfig:
    """Compose the run's overrides anew, and take every value of the steps from its record.

    What only says where to write, or refers to other values, is as composed now. The second run
    starts from nothing, also where the first went on from a checkpoint: of the same config, that
    makes no difference.
    """
    config = compose_config([*run.info["overrides"], f"run_dir={again}", "resume=auto"])
    for name in {name for step in steps.STEPS.values() for name in step.reads} - _COMPOSED:
        if name in run.config:  # of an older version: it knew no such group
            _take(config, name, run.config[name])
    return config


def _take(config: DictConfig, name: str, value: Any) -> None:
    """Replace a group as a whole; settings keep their type."""
    if OmegaConf.is_config(config[name]) and OmegaConf.get_type(config[name]) is not dict:
        value = OmegaConf.merge(config[name], value)
    config[name] = value


def first_difference(one: Path, other: Path) -> str | None:
    """Compare two runs: weights, rows of metrics.csv, embeddings, index, metrics.

    Returns:
        None if they are equal, else the artifact, what in it differs, and by how much.
    """
    return (
        _weights(one / "model.pt", other / "model.pt")
        or _rows(one / "metrics.csv", other / "metrics.csv")
        or _embeddings(one / "gallery", other / "gallery")
        or _bytes(one, other, "index/faiss_index.bin")
        or _bytes(one, other, "index/faiss_label.json")
        or _metrics(one / "evaluation/metrics.json", other / "evaluation/metrics.json")
    )


def _weights(one: Path, other: Path) -> str | None:
    import torch

    if sha256_file(one) == sha256_file(other):
        return None
    first, second = (
        torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
        for path in (one, other)
    )
    for name in first.keys() | second.keys():
        if name not in first or name not in second or first[name].shape != second[name].shape:
            return f"model.pt, tensor {name}: not of the same shape in both"
    for name, tensor in first.items():
        if not torch.equal(tensor, second[name]):
            most = float((tensor.double() - second[name].double()).abs().max())
            return f"model.pt, tensor {name}: max |difference| {most:.3g}"
    return "model.pt: equal weights, another file"


def _rows(one: Path, other: Path) -> str | None:
    if not one.is_file():
        return None
    tables = []
    for path in (one, other):
        with open(path, newline="", encoding="utf-8") as file:
            tables.append(list(csv.DictReader(file)))
    for first, second in zip_longest(*tables, fillvalue={}):
        if first != second:
            step = first.get("step") or second.get("step")
            names = sorted(n for n in first.keys() | second.keys() if first.get(n) != second.get(n))
            return f"metrics.csv, step {step}: {', '.join(names)}"
    return None


def _embeddings(one: Path, other: Path) -> str | None:
    for file in sorted(one.glob("*.npy")) if one.is_dir() else []:
        first, second = np.load(file), np.load(other / file.name)
        if not np.array_equal(first, second):
            most = np.abs(first - second).max() if first.shape == second.shape else np.inf
            return f"gallery, {file.name}: max |difference| {most:.3g}"
    return None


def _bytes(one: Path, other: Path, name: str) -> str | None:
    if not (one / name).is_file():
        return None
    equal = sha256_file(one / name) == sha256_file(other / name)
    return None if equal or _same_but_model(one / name, other / name) else f"{name}: other contents"


def _same_but_model(one: Path, other: Path) -> bool:
    """Whether two label files differ in nothing but the hash of the model's file."""
    if one.suffix != ".json":
        return False
    first, second = (json.loads(path.read_bytes()) for path in (one, other))
    return {**first, "model_sha256": None} == {**second, "model_sha256": None}


def _metrics(one: Path, other: Path) -> str | None:
    if not one.is_file():
        return None
    first, second = (json.loads(path.read_bytes()) for path in (one, other))
    for name in first.keys() | second.keys():
        if first.get(name) != second.get(name):
            return f"metrics.json, {name}: {first.get(name)} and {second.get(name)}"
    return None
