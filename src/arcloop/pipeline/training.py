"""The step `train`: in this process, or in several processes of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from arcloop.artifacts import Artifact
from arcloop.config.composition import build, to_plain
from arcloop.distributed.launcher import count_processes_to_start, launch_training, worker_job
from arcloop.errors import ArcloopError
from arcloop.pipeline.attempts import raise_recorded, remove_record
from arcloop.pipeline.steps import STEPS
from arcloop.pipeline.sweeps.pruning import JobTrial
from arcloop.training import NODES, TrainingSetup, train


def train_here(
    config: DictConfig, store: Path, run_dir: Path, overrides: Sequence[str], *, pipeline_task: bool
) -> Artifact:
    """Train in this process: a single process, or one of several that a launcher started."""
    recorded = to_plain(config)
    if pipeline_task:
        others = {node for step in STEPS.values() for node in step.reads}
        others -= set(STEPS["train"].reads)
        recorded = {key: value for key, value in recorded.items() if key not in others}
    trial = JobTrial.of(config)
    return train(
        training_setup(config),
        store,
        run_dir,
        resume=str(config.resume).lower(),
        overwrite=config.overwrite,
        config=recorded,
        overrides=overrides,
        report=None if trial is None else trial.report,
    )


def train_in_workers(
    config: DictConfig, store: Path, run_dir: Path, overrides: Sequence[str], *, pipeline_task: bool
) -> Artifact:
    """Train in several processes that this one starts.

    Raises:
        TrainingPruned: The pruner of a sweep ended the training.
        ArcloopError: A process failed; its own error is raised if it has recorded one.
    """
    processes = count_processes_to_start(config)
    # Check the batch settings once, before any process is started.
    datamodule = training_setup(config).make_datamodule(store)
    datamodule.make_batches(processes * config.trainer.num_nodes)
    if not pipeline_task:  # the record of a task ends its retries
        remove_record(run_dir)
    job = worker_job(config, store, run_dir, overrides, pipeline_task=pipeline_task)
    try:
        return launch_training(processes, job)
    except ArcloopError:
        trial = JobTrial.of(config)
        if trial is not None and (decision := trial.decision()):
            raise decision from None
        raise_recorded(run_dir)
        raise
    finally:
        if not pipeline_task:
            remove_record(run_dir)


def training_setup(config: DictConfig) -> TrainingSetup:
    """Build the objects of a training run."""
    nodes = {name: build(config, name) for name in NODES}
    return TrainingSetup(**nodes, seed=config.seed, monitor=config.monitor, compile=config.compile)
