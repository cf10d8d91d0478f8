"""`arcloop reproduce RUN_DIR`: repeat a run from its recorded config and compare the results."""

from __future__ import annotations

import argparse
import csv
import json
import reprlib
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf, open_dict

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import sha256_file
from arcloop.config.composition import compose_config, to_plain
from arcloop.config.plugins import naming_missing_plugins
from arcloop.config.project import use_project_of_run
from arcloop.config.recorded import same_target
from arcloop.display.terminal import print_line
from arcloop.errors import ConfigError, Terminated
from arcloop.pipeline import steps
from arcloop.pipeline.chains import find_store

_NO_COMPARISON = dict.fromkeys(("versus", "max_loss", "max_negative_flips", "max_class_loss"))
_COMPOSED = {"logger", "callbacks"}
"""Config groups that are composed for the second run, because they refer to its folder."""
_COMPARED = (
    "model.pt", "metrics.csv", "gallery/*.npy", "index/faiss_index.bin", "index/faiss_label.json",
    "index/faiss_label.npy", "evaluation/metrics.json",
)  # fmt: skip


def reproduce(arguments: Sequence[str]) -> int:
    """Repeat a run, and print "equal" or the first difference.

    Returns:
        0 if the runs are equal, 1 if they differ.

    Raises:
        ArtifactError: The run is damaged, or its store was moved or removed.
    """
    parser = argparse.ArgumentParser("arcloop reproduce", description=__doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a finished run")
    parser.add_argument(
        "--output", metavar="DIR", help="folder of the second run (default: RUN_DIR-reproduced)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the second run if it is equal")
    options = parser.parse_args(arguments)
    original = artifacts.without_link(Path(options.run_dir))
    second = Path(options.output or f"{original}-reproduced")
    run = artifacts.load(original, "run")
    use_project_of_run(run.info, original)
    if second.exists():
        raise ConfigError(
            "the folder for the second run exists",
            where=second,
            remedy="remove it, or pass --output",
        )
    rerun(run, second)
    difference = first_difference(original, second)
    if difference is None:
        print(f"equal: {original}")
        if not options.keep:
            shutil.rmtree(second)
        return 0
    print(f"different: {difference}")
    print_line(f"the second run is in {second}")
    return 1


def rerun(run: Artifact, second: Path) -> None:
    """Repeat a run in another folder, and its gallery, index and evaluation if they exist."""
    store = find_store(run.path)
    inputs = {
        "store": store,
        "run": second,
        "gallery": second / "gallery",
        "index": second / "index",
    }
    last = {"overrides": run.info["overrides"], "config": run.config}
    parts = run.info.get("parts", [last])  # several if the run was resumed with other configs
    for part, following in pairwise([*parts, None]):
        with naming_missing_plugins(run.info):
            config = recorded_config(part["overrides"], part["config"], second)
        config.resume = "auto" if part is parts[0] else "true"
        if following is not None:
            with open_dict(config):
                config.callbacks.last.stop_at_step = following["step"]
        try:
            steps.apply("train", config, inputs, second, part["overrides"])
        except Terminated:
            from arcloop.training.resume import find_checkpoint

            found = find_checkpoint(second / "checkpoints")
            if following is None or found is None or found[1] != following["step"]:
                raise
    for name in steps.AFTER_TRAINING:
        kind = steps.STEPS[name].output
        if artifacts.exists(run.path / kind):
            recorded = artifacts.read(run.path / kind, kind).config
            for group, values in recorded.items():
                before = {} if "_target_" in values else run.config[group]
                _replace_group(config, group, {**before, **values})
            steps.apply(name, config, inputs, second / kind, reuse=True)


def recorded_config(
    overrides: Sequence[str], recorded: Mapping[str, Any], second: Path
) -> DictConfig:
    """Compose the overrides of a run, and replace the values of all steps by the recorded ones.

    The groups of `_COMPOSED`, which contain output paths, are not replaced.
    """
    config = compose_config(list(overrides))
    config.run_dir = str(second)
    for name in {name for step in steps.STEPS.values() for name in step.reads} - _COMPOSED:
        if name in recorded:  # a run of an older version may lack the group
            _replace_group(config, name, recorded[name])
    return config


def _replace_group(config: DictConfig, name: str, value: Any) -> None:
    """Replace a config group; typed settings keep their dataclass type.

    Keys that the version of the run did not have keep their defaults. The comparison with another
    model is left out: no compared file depends on it, and the other model may have been removed.
    """
    if name == "evaluate":
        value = {**value, "gate": {**value["gate"], **_NO_COMPARISON}}
    current = to_plain(config[name]) if OmegaConf.is_dict(config[name]) else None
    if current is not None and same_target(current.get("_target_"), value.get("_target_")):
        value = {**current, **value}
    if OmegaConf.is_config(config[name]) and OmegaConf.get_type(config[name]) is not dict:
        value = OmegaConf.merge(config[name], value)
    config[name] = value


def first_difference(one: Path, other: Path) -> str | None:
    """Compare two runs: weights, rows of metrics.csv, embeddings, index, metrics.

    Returns:
        None if they are equal, otherwise the first difference: the file, the part of it that
        differs, and the size of the difference.
    """
    explain = {
        ".pt": _explain_weights, ".csv": _explain_rows, ".npy": _explain_arrays,
        ".json": _explain_values, ".bin": lambda *_: ": different contents",
    }  # fmt: skip
    for pattern in _COMPARED:
        for file in sorted(one.glob(pattern)):
            second = other / file.relative_to(one)
            if sha256_file(file) != sha256_file(second) and (
                difference := explain[file.suffix](file, second)
            ):
                return f"{file.relative_to(one)}{difference}"
    return None


def _explain_weights(one: Path, other: Path) -> str:
    import torch

    first, second = (
        torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
        for path in (one, other)
    )
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second or first[name].shape != second[name].shape:
            return f", tensor {name}: shapes differ"
        if not torch.equal(first[name], second[name]):
            largest = float((first[name].double() - second[name].double()).abs().max())
            return f", tensor {name}: max |difference| {largest:.3g}"
    return ": equal weights, different files"


def _explain_rows(one: Path, other: Path) -> str:
    tables = [csv.DictReader(path.read_text("utf-8").splitlines()) for path in (one, other)]
    for first, second in zip_longest(*tables, fillvalue={}):
        names = sorted(n for n in first.keys() | second.keys() if first.get(n) != second.get(n))
        if names:
            return f", step {first.get('step') or second.get('step')}: {', '.join(names)}"
    return ": different contents"


def _explain_arrays(one: Path, other: Path) -> str:
    first, second = np.load(one), np.load(other)
    largest = np.abs(first - second).max() if first.shape == second.shape else np.inf
    return f": max |difference| {largest:.3g}"


def _explain_values(one: Path, other: Path) -> str:
    """Return "" if only the hash of model.pt differs, which depends on more than its weights."""
    first, second = (json.loads(path.read_bytes()) for path in (one, other))
    for name in sorted((first.keys() | second.keys()) - {"model_sha256"}):
        if first.get(name) != second.get(name):
            values = [reprlib.repr(content.get(name)) for content in (first, second)]
            return f", {name}: {' and '.join(values)}"
    return ""
