"""The steps of the pipeline, and the functions that run them.

The command line, the pods of a Kubeflow pipeline and the tests call the same functions. Packages
that are slow to import are imported in the functions of the steps that need them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.config.composition import build, build_node, compose_config
from arcloop.distributed.launcher import count_processes_to_start
from arcloop.distributed.threads import count_threads, use_threads


@dataclass(frozen=True)
class Step:
    """A step of the pipeline.

    Attributes:
        name: Name of the step, which is also its verb.
        reads: Config groups and settings that the result depends on.
        inputs: Roles of the input artifacts.
        output: Kind of the output artifact; empty if there is none.
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
                "seed", "threads", "monitor", "monitor_mode", "head_scale", "compile", "loader",
                "sampler", "augmentation", "backbone", "backbone_weights", "embedder", "head",
                "optimizer", "scheduler", "trainer", "logger", "callbacks", "export", "calibration",
            ),
            ("store",),
            "run",
        ),
        Step("embed", ("embed",), ("run", "store"), "gallery"),
        Step("index", ("index", "calibration", "embed"), ("run", "store", "gallery"), "index"),
        Step("evaluate", ("evaluate", "embed"), ("run", "store", "gallery", "index"), "evaluation"),
    )
}  # fmt: skip

ALL_STEPS: Mapping[str, Step] = {**STEPS, "export": Step("export", ("export",), ("run",), "export")}
"""`STEPS` and `export`, which is not a pipeline task because `train` exports at its end."""

AFTER_TRAINING = tuple(name for name, step in STEPS.items() if "run" in step.inputs)
"""Steps that take a trained model; the callbacks of `train` call the same functions."""


def run_step(
    name: str, overrides: Sequence[str], inputs: Mapping[str, Path], output: Path
) -> Artifact:
    """Run one step with overrides as given on the command line.

    Args:
        name: A key of `ALL_STEPS`.
        overrides: Hydra overrides; overrides of groups that the step does not read have no effect.
        inputs: Role -> folder of each artifact that the step takes.
        output: Folder to write; for `train`, the run directory.

    Returns:
        The artifact that the step made.

    Raises:
        ConfigError: An override is invalid.
        DataError, ArtifactError, ResourceError: The step failed.
    """
    config = compose_config(overrides)
    if name == "train":
        config.run_dir = str(output)
    return apply(name, config, inputs, output, overrides, pipeline_task=True)


def apply(
    name: str,
    config: DictConfig,
    inputs: Mapping[str, Path],
    output: Path,
    overrides: Sequence[str] = (),
    *,
    reuse: bool = False,
    pipeline_task: bool = False,
) -> Artifact:
    """Run one step with a composed and checked config.

    Args:
        name: A key of `ALL_STEPS`.
        config: The config.
        inputs: Role -> folder of each artifact that the step takes. For `evaluate` with other data
            than those of the run also "index_of_run", or with the gallery of the run
            "gallery_store"; for `export` the "store" of the run, if it was found.
        output: Folder to write; for `train`, the run directory.
        overrides: Overrides that the config was composed from; a run records them.
        reuse: Return the artifact at `output` if it was made from the same inputs with the same
            settings. `prepare` and `train` always do this.
        pipeline_task: The step is a task of a pipeline, which does not have the overrides of the
            other tasks: record only the config groups that the step reads.
    """
    assert set(ALL_STEPS[name].inputs) <= inputs.keys()
    functions: Mapping[str, Callable[[_Call], Artifact]] = {
        "prepare": _prepare, "validate": _validate, "train": _train,
        "embed": _embed, "index": _index, "evaluate": _evaluate, "export": _export,
    }  # fmt: skip
    is_training = name == "train"
    threads = count_threads(
        config, output if is_training else inputs.get("run"), is_training=is_training
    )
    if is_training:
        config.threads = threads  # recorded in the run
    with use_threads(threads):
        return functions[name](_Call(config, inputs, output, overrides, reuse, pipeline_task))


@dataclass(frozen=True)
class _Call:
    config: DictConfig
    inputs: Mapping[str, Path]
    output: Path
    overrides: Sequence[str]
    reuse: bool
    pipeline_task: bool

    def build(self, name: str) -> Any:
        return build(self.config, name)


def dry_run(config: DictConfig, names: Iterable[str]) -> None:
    """Build every object that the steps will need, so that wrong values fail before work starts.

    Raises:
        ConfigError: A constructor rejects its values, there is nothing to export, a file does not
            exist, or training requires more processes than are possible.
        DataError: A list of pairs has faults.
    """
    for name in names:
        if name == "train":
            count_processes_to_start(config)
            from arcloop.pipeline.training import training_setup

            training_setup(config).dry_run(_known_image_shape(config))
        elif name == "export":
            from arcloop.export import extra_formats

            extra_formats(build(config, "export"), at_least_one=True)
        else:
            for node in ALL_STEPS[name].reads:
                build(config, node)
        if name in ("train", "evaluate") and (versus := config.evaluate.gate.versus) is not None:
            from arcloop.evaluation.incumbent import find_incumbent

            find_incumbent(versus)
        if name in ("train", "evaluate") and config.evaluate.pairs:
            from arcloop.evaluation.pairs import hash_pair_lists

            hash_pair_lists(config.evaluate.pairs)  # reads the headers of all images


def _known_image_shape(config: DictConfig) -> tuple[int, int, int] | None:
    """Return (H, W, C) of the images; None if the config does not have image_size and channels."""
    size, channels = config.data.get("image_size"), config.data.get("channels")
    if size is None or channels is None:
        return None
    height, width = [size] * 2 if isinstance(size, int) else size
    return height, width, channels


def _prepare(call: _Call) -> Artifact:
    from arcloop.data import prepare

    full_check = call.config.check == "full"
    append = call.config.append
    return prepare(call.build("data"), call.output, append=append, full_check=full_check)


def _validate(call: _Call) -> Artifact:
    from arcloop.data import validate

    settings = call.build("validation")
    return validate(call.inputs["store"], call.output, settings, reuse=call.reuse)


def _train(call: _Call) -> Artifact:
    from arcloop.pipeline.training import train_here, train_in_workers

    train = train_in_workers if count_processes_to_start(call.config) > 1 else train_here
    store, is_task = call.inputs["store"], call.pipeline_task
    return train(call.config, store, call.output, call.overrides, pipeline_task=is_task)


def _embed(call: _Call) -> Artifact:
    from arcloop.retrieval.embed import embed_gallery

    return embed_gallery(
        call.inputs["run"] / "model.pt",
        call.inputs["store"],
        call.output,
        call.build("embed"),
        reuse=call.reuse,
    )


def _index(call: _Call) -> Artifact:
    from arcloop.retrieval.calibration import held_out_of_run
    from arcloop.retrieval.index import build_index

    return build_index(
        call.inputs["run"] / "model.pt",
        call.inputs["store"],
        call.inputs["gallery"],
        call.output,
        index=call.build("index"),
        calibration=call.build("calibration"),
        embed_settings=call.build("embed"),
        held_out=held_out_of_run(call.inputs["run"], call.build("calibration")),
        reuse=call.reuse,
    )


def _evaluate(call: _Call) -> Artifact:
    from arcloop.evaluation.evaluate import evaluate

    builder = None
    if index := call.inputs.get("index_of_run"):  # evaluate other data with an index of its kind
        recorded = artifacts.read(index, "index").config["index"]
        builder = build_node({"dim": None, **recorded})  # older versions record no `dim`
    return evaluate(
        call.inputs["run"],
        call.inputs["store"],
        call.inputs["gallery"],
        call.inputs["index"],
        call.output,
        settings=call.build("evaluate"),
        embed_settings=call.build("embed"),
        gallery_store=call.inputs.get("gallery_store"),
        index_builder=builder,
        reuse=call.reuse,
    )


def _export(call: _Call) -> Artifact:
    from arcloop.export import export_run, extra_formats

    run = call.inputs["run"]
    # Use the recorded network of the run; conf/ may have changed since.
    recorded = artifacts.read(run, "run").config
    return export_run(
        run,
        extra_formats(call.build("export"), at_least_one=True),
        call.output,
        backbone=build_node(recorded["backbone"]),
        embedder=build_node(recorded["embedder"]),
        store=call.inputs.get("store"),
        reuse=call.reuse,
    )
