"""The fit: a store and a recipe -> a sealed run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.trainer.states import TrainerStatus

from arcloop import artifacts
from arcloop.artifacts import Artifact, writer
from arcloop.artifacts.atomic import sha256_file, sha256_json, write_bytes, write_json
from arcloop.data import EmbeddingDataModule
from arcloop.display.terminal import say
from arcloop.distributed.team import own_share
from arcloop.errors import ConfigError, ResourceError, unwritable
from arcloop.export.export_run import beside, export_trained, try_formats
from arcloop.training.bf16 import warn_of_slow_bf16
from arcloop.training.callbacks.timing import Timing
from arcloop.training.loggers.run_logger import RunLogger
from arcloop.training.loggers.tracking import TRACKED_IDS
from arcloop.training.module import EmbeddingModule
from arcloop.training.quiet import quiet
from arcloop.training.recipe import NODES, Recipe, processes_of
from arcloop.training.resume import newest_whole, require_fit

CONFIG = "config.yaml"
_CHECKPOINTS = "checkpoints"
_BEGUN = ".begun.json"
_IDENTITY = (
    "seed", "monitor", "monitor_mode", "compile",
    *(name for name in NODES if name not in ("logger", "callbacks", "export")),
)  # fmt: skip
_OF_LOGGERS = ("tensorboard", "wandb")
_OWN = (
    artifacts.MANIFEST, _BEGUN, CONFIG, _CHECKPOINTS, "model.pt", "golden.npz", "metrics.csv",
    "gallery", "index", "evaluation", "export", *_OF_LOGGERS, *TRACKED_IDS
)  # fmt: skip


def train(
    recipe: Recipe,
    store: Path,
    run_dir: Path,
    *,
    resume: str,
    overwrite: bool,
    config: Mapping[str, Any],
    overrides: Sequence[str],
) -> Artifact:
    """Train, run the callbacks, and seal the run.

    A finished run of the same recipe and store is returned as it is.

    Args:
        recipe: What to train and how.
        store: Folder of the `store` to train on.
        run_dir: Folder of the `run`.
        resume: "auto", "true" or "false", see `Config.resume`.
        overwrite: Replace a run of another recipe.
        config: The resolved config, to record.
        overrides: What it was composed from, to record.

    Raises:
        ConfigError: `run_dir` holds another run, or there is nothing to resume.
        DivergedError: The loss is not finite any more.
        ResourceError: The folder cannot be written, or memory ran out.
        KeyboardInterrupt: It was interrupted; last.ckpt is whole and `resume` goes on from it.
    """
    with quiet():
        datamodule = recipe.make_datamodule(store)
        parents = {"store": datamodule.store.artifact.sha256}
        if recipe.backbone_weights.file is not None:
            parents["backbone_weights"] = sha256_file(Path(recipe.backbone_weights.file))
        identity = _identity(config, parents)
        start = _start(run_dir, identity, resume=resume, overwrite=overwrite)
        if isinstance(start, Artifact):
            say(f"train: {run_dir} is trained with this config already")
            return _exported(start, recipe)
        module = recipe.make_module(datamodule.image_shape, datamodule.num_classes)
        if start is not None:
            require_fit(start[0], module)
        _try_exports(recipe, module)
        trainer = recipe.make_trainer(Timing(run_dir))
        datamodule.make_batches(processes_of(trainer))  # what it cannot make is told before work
        warn_of_slow_bf16(trainer)
        if trainer.is_global_zero:
            _begin(run_dir, identity, config, fresh=start is None)
            _begin_loggers(trainer, config, 0 if start is None else start[1])
            say(_mode(trainer, recipe))
        _fit(trainer, module, datamodule, None if start is None else start[0], recipe)
    info = {
        "identity": identity,
        "overrides": list(overrides),
        "objective": _objective(trainer),
    }
    if trainer.is_global_zero:
        writer.seal(run_dir, "run", config=config, parents=parents, info=info, apart=_OF_LOGGERS)
    own_share().meet()
    return _exported(artifacts.read(run_dir, "run"), recipe)


def _fit(
    trainer: pl.Trainer,
    module: EmbeddingModule,
    datamodule: EmbeddingDataModule,
    checkpoint: Path | None,
    recipe: Recipe,
) -> None:
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    except torch.OutOfMemoryError as cause:
        raise _out_of_memory(trainer, recipe, cause) from None
    except SystemExit:  # what Lightning makes of Ctrl-C
        if trainer.state.status == TrainerStatus.INTERRUPTED:
            raise KeyboardInterrupt from None
        raise


def _try_exports(recipe: Recipe, module: EmbeddingModule) -> None:
    if _first():
        try_formats(module.embedder, beside(recipe.export))


def _exported(run: Artifact, recipe: Recipe) -> Artifact:
    """Make what is exported beside model.pt, once the run can no longer be lost by it."""
    formats = beside(recipe.export)
    if formats and _first():
        export_trained(run.path, formats, backbone=recipe.backbone, embedder=recipe.embedder)
    return run


def _identity(config: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """Hash of all that decides what the weights become."""
    decisive = {name: config[name] for name in _IDENTITY}
    decisive["averaging"] = config["callbacks"].get("ema")
    for name in ("freeze", "warmup"):
        decisive[name] = config["callbacks"].get(name)
    return sha256_json([decisive, dict(parents)])


def _start(
    run_dir: Path, identity: str, *, resume: str, overwrite: bool
) -> Artifact | tuple[Path, int] | None:
    """Decide between a finished run, a checkpoint and step to go on from, and a fresh start."""
    if resume == "true":
        last = newest_whole(run_dir / _CHECKPOINTS)
        if last is None:
            raise ConfigError(
                "resume=true, but there is no last.ckpt",
                where=run_dir,
                remedy="leave resume out to start a new run",
            )
        return last
    begun = _begun_identity(run_dir)
    if begun is not None and begun != identity and not overwrite:
        raise ConfigError(
            "this folder holds a run of another config or store",
            where=run_dir,
            remedy="choose another run_dir=, or pass overwrite=true to replace it",
        )
    if begun == identity and resume == "auto":
        if artifacts.exists(run_dir):
            return artifacts.load(run_dir, "run")
        if last := newest_whole(run_dir / _CHECKPOINTS):
            say(f"train: going on from {last[0]}, after {last[1]} steps")
            return last
    # Rank zero looks: others may come when it has begun to lay the folder out.
    if begun is None and _first() and run_dir.is_dir() and any(run_dir.iterdir()):
        raise ConfigError(
            "this folder holds things that are not of a run",
            where=run_dir,
            remedy="choose another run_dir=",
        )
    return None


def _first() -> bool:
    """Whether this is the only process, or the first of those that a launcher started."""
    return int(os.environ.get("RANK", "0")) == 0


def _begun_identity(run_dir: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads((run_dir / _BEGUN).read_bytes())["identity"])
    return None


def _begin(run_dir: Path, identity: str, config: Mapping[str, Any], *, fresh: bool) -> None:
    """Lay out the folder; what an earlier run left goes first, its manifest before all else."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / artifacts.MANIFEST).unlink(missing_ok=True)
        for name in _OWN if fresh else ():
            path = run_dir / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        write_json(run_dir / _BEGUN, {"identity": identity})
        write_bytes(run_dir / CONFIG, yaml.safe_dump(dict(config), sort_keys=False).encode())
    except OSError as cause:
        raise unwritable(run_dir, cause) from cause


def _mode(trainer: pl.Trainer, recipe: Recipe) -> str:
    device = trainer.strategy.root_device
    deterministic = torch.are_deterministic_algorithms_enabled()
    return (
        f"train: {trainer.world_size} x {device.type}, {trainer.precision},"
        f" batch {recipe.loader.batch_size}, "
        + ("deterministic" if deterministic else "not deterministic")
        + (", compiled" if recipe.compile else "")
    )


def _out_of_memory(trainer: pl.Trainer, recipe: Recipe, cause: Exception) -> ResourceError:
    size = recipe.loader.batch_size
    return ResourceError(
        f"the memory of {trainer.strategy.root_device} ran out with batches of {size} in"
        f" {trainer.precision}: {str(cause).partition('. ')[0]}",
        remedy=f"loader.batch_size={max(size // 2, 1)} trainer.accumulate_grad_batches=2,"
        " trainer.precision=bf16-mixed, or loader.on_device=false",
    )


def _begin_loggers(trainer: pl.Trainer, config: Mapping[str, Any], step: int) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger):
            logger.begin(config, step)


def _objective(trainer: pl.Trainer) -> float | None:
    """The best value of the monitored metric, which a sweep compares."""
    score = getattr(trainer.checkpoint_callback, "best_model_score", None)
    return None if score is None else float(score)
