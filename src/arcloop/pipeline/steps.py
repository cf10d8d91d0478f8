"""The steps: a table of what each reads, takes and makes, and one way to run any of them.

One process, a pod of a pipeline and a test all go through `run_step`, so they cannot differ.
Heavy imports happen inside the step that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.config.composition import as_config_error, compose_config, to_plain
from arcloop.distributed.launcher import count_processes_to_start, launch_training


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: Its verb.
        reads: Config groups and settings its result depends on.
        inputs: Artifacts it takes, by role.
        output: Kind of the artifact it makes.
    """

    name: str
    reads: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str


STEPS: Mapping[str, Step] = {
    step.name: step
    for step in (
        Step("prepare", ("data",), (), "store"),
        Step("validate", ("validation",), ("store",), "validation"),
        Step(
            "train",
            (
                "seed", "monitor", "monitor_mode", "compile", "loader", "sampler", "augmentation",
                "backbone", "backbone_weights", "embedder", "head", "optimizer", "scheduler",
                "trainer", "logger", "callbacks", "export",
            ),
            ("store",),
            "run",
        ),
        Step("embed", ("embed",), ("run", "store"), "gallery"),
        Step("index", ("index", "calibration", "embed"), ("run", "store", "gallery"), "index"),
        Step(
            "evaluate",
            ("evaluate", "embed"),
            ("run", "store", "gallery", "index"),
            "evaluation",
        ),
    )
}  # fmt: skip

EXPORT = Step("export", ("export",), ("run",), "export")
"""Not in `STEPS`: a pipeline needs no pod for what `train` does as it ends."""

ALL_STEPS: Mapping[str, Step] = {**STEPS, "export": EXPORT}


def run_step(
    name: str, overrides: Sequence[str], inputs: Mapping[str, Path], output: Path
) -> Artifact:
    """Run one step with overrides as the command line takes them.

    Args:
        name: A key of `ALL_STEPS`.
        overrides: Hydra overrides; those of groups that the step does not read change nothing.
        inputs: Role -> folder of each artifact that the step takes.
        output: Folder to write; for `train`, the run directory.

    Returns:
        The artifact it made.

    Raises:
        ConfigError: The overrides are wrong.
        DataError, ArtifactError, ResourceError: The step could not be done.
    """
    config = compose_config([*overrides, *([f"run_dir={output}"] if name == "train" else [])])
    return apply(name, config, inputs, output, overrides, alone=True)


def apply(
    name: str,
    config: DictConfig,
    inputs: Mapping[str, Path],
    output: Path,
    overrides: Sequence[str] = (),
    *,
    reuse: bool = False,
    alone: bool = False,
) -> Artifact:
    """Run one step with an already composed and checked config; see `run_step`.

    With `reuse`, an artifact at `output` that was made of the same inputs with the same settings is
    returned as it is. `prepare` and `train` always do so. With `alone`, what the step does not read
    is not recorded: nobody said what the other steps were given.
    """
    assert set(ALL_STEPS[name].inputs) <= inputs.keys()
    functions: Mapping[str, Callable[[_Call], Artifact]] = {
        "prepare": _prepare, "validate": _validate, "train": _train,
        "embed": _embed, "index": _index, "evaluate": _evaluate, "export": _export,
    }  # fmt: skip
    return functions[name](_Call(config, inputs, output, overrides, reuse, alone))


@dataclass(frozen=True)
class _Call:
    config: DictConfig
    inputs: Mapping[str, Path]
    output: Path
    overrides: Sequence[str]
    reuse: bool
    alone: bool

    def build(self, name: str) -> Any:
        return build(self.config, name)


def rehearse(config: DictConfig, names: Iterable[str]) -> None:
    """Build all that these steps will need, so that a wrong value is told before any of them runs.

    Raises:
        ConfigError: A constructor refuses its values, there is nothing to export, or there
            cannot be as many processes as training asks for.
    """
    for name in names:
        if name == "train":
            count_processes_to_start(config)
            _training_setup(config).dry_run()
        elif name == "export":
            _formats(config)
        else:
            for node in ALL_STEPS[name].reads:
                build(config, node)


def _prepare(call: _Call) -> Artifact:
    from arcloop.data import prepare

    return prepare(call.build("data"), call.output, append=call.config.append)


def _validate(call: _Call) -> Artifact:
    from arcloop.data import validate

    settings = call.build("validation")
    return validate(call.inputs["store"], call.output, settings, reuse=call.reuse)


def _train(call: _Call) -> Artifact:
    store = call.inputs["store"]
    processes = count_processes_to_start(call.config)
    if processes > 1:
        # Batches that this store cannot have are told once, and before any process is started.
        datamodule = _training_setup(call.config).make_datamodule(store)
        datamodule.make_batches(processes * call.config.trainer.num_nodes)
        return launch_training(
            processes, call.config, store, call.output, call.overrides, alone=call.alone
        )
    return train_here(call.config, store, call.output, call.overrides, alone=call.alone)


def train_here(
    config: DictConfig, store: Path, run_dir: Path, overrides: Sequence[str], *, alone: bool
) -> Artifact:
    """Train in this process: the only one, or one of several that a launcher started."""
    from arcloop.training import train

    recorded = to_plain(config)
    if alone:
        others = {node for step in STEPS.values() for node in step.reads}
        others -= set(STEPS["train"].reads)
        recorded = {key: value for key, value in recorded.items() if key not in others}

    return train(
        _training_setup(config),
        store,
        run_dir,
        resume=str(config.resume).lower(),
        overwrite=config.overwrite,
        config=recorded,
        overrides=overrides,
    )


def _training_setup(config: DictConfig) -> Any:
    from arcloop.training import NODES, TrainingSetup

    nodes = {name: build(config, name) for name in NODES}
    return TrainingSetup(**nodes, seed=config.seed, monitor=config.monitor, compile=config.compile)


def _embed(call: _Call) -> Artifact:
    from arcloop.retrieval.embed_gallery import embed_gallery

    return embed_gallery(
        call.inputs["run"] / "model.pt",
        call.inputs["store"],
        call.output,
        call.build("embed"),
        reuse=call.reuse,
    )


def _index(call: _Call) -> Artifact:
    from arcloop.retrieval.build_index import build_index

    return build_index(
        call.inputs["run"] / "model.pt",
        call.inputs["store"],
        call.inputs["gallery"],
        call.output,
        index=call.build("index"),
        calibration=call.build("calibration"),
        embed_settings=call.build("embed"),
        reuse=call.reuse,
    )


def _evaluate(call: _Call) -> Artifact:
    from arcloop.evaluation.evaluate import evaluate

    return evaluate(
        call.inputs["run"],
        call.inputs["store"],
        call.inputs["gallery"],
        call.inputs["index"],
        call.output,
        settings=call.build("evaluate"),
        embed_settings=call.build("embed"),
        reuse=call.reuse,
    )


def _export(call: _Call) -> Artifact:
    from arcloop.export import export_run

    run = call.inputs["run"]
    # What the run was trained as, whatever conf/ has become since.
    recorded = artifacts.read(run, "run").config
    return export_run(
        run,
        _formats(call.config),
        call.output,
        backbone=build_node(recorded["backbone"]),
        embedder=build_node(recorded["embedder"]),
        reuse=call.reuse,
    )


def _formats(config: DictConfig) -> Any:
    from arcloop.export import extra_formats

    return extra_formats(build(config, "export"), at_least_one=True)


def build(config: DictConfig, name: str) -> Any:
    """Make the object that a node of the config describes: a `_target_`, or typed settings.

    Raises:
        ConfigError: Its constructor refuses the values.
    """
    node = config[name]
    return {} if node is None else build_node(node)


def build_node(node: Any) -> Any:
    """Make the object that a node describes, out of a config or out of a manifest.

    Raises:
        ConfigError: Its constructor refuses the values.
    """
    from hydra.utils import instantiate

    try:
        return instantiate(node, _convert_="object")
    except Exception as cause:  # whatever a constructor raises on a wrong value
        raise as_config_error(cause) from cause
