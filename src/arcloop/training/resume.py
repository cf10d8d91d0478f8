"""Resuming a run: its identity, its last checkpoint, and where training starts.

A run that was interrupted at any point and resumed writes the same bytes as an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import is_empty, sha256_json
from arcloop.config.value_types import PositiveInt, checked
from arcloop.display.terminal import print_line
from arcloop.distributed.process_group import launched_rank
from arcloop.errors import ArtifactError, ConfigError
from arcloop.models import ShardedArcFace, compare_weights
from arcloop.models.checkpoints import LAST, PREVIOUS, read_checkpoint
from arcloop.training.loggers import RunLogger
from arcloop.training.setup import NODES
from arcloop.training.sharded import HEAD_WEIGHT

CHECKPOINTS = "checkpoints"
STARTED = ".begun.json"
"""File with the identity of the run that a folder belongs to, written when training starts."""
CALLBACKS_WITHOUT_EFFECT = frozenset({
    "arcloop.training.LastCheckpoint", "arcloop.training.ExportScripted",
    "arcloop.training.BuildIndex", "arcloop.training.Evaluate",
    "arcloop.training.TensorBoardPages",
    "pytorch_lightning.callbacks.LearningRateMonitor",
    "pytorch_lightning.callbacks.DeviceStatsMonitor",
})  # fmt: skip
"""`_target_` of the callbacks that change neither the weights nor the best checkpoint."""
_IDENTITY_KEYS = (
    "seed", "monitor", "monitor_mode", "compile",
    *(name for name in NODES if name not in ("logger", "callbacks", "export")),
)  # fmt: skip
_PARTS = (
    ("embedder.backbone.", "backbone"),
    ("embedder.", "embedder (embedder.embedding_dim, or the size of the images)"),
    ("", "head or number of classes"),
)
"""Prefix of the names of weights -> the part of the config that they belong to."""


class LastCheckpoint(Callback):
    """Writes last.ckpt at the start of every epoch, at the end of the fit, and every few steps.

    The checkpoint is written immediately before a training step. At this point the previous step is
    complete: optimizer step, validation and logged row. Lightning's ModelCheckpoint
    saves at the end of a batch, before the row is logged, so a resumed run would lose the row.

    Args:
        dirpath: Folder of last.ckpt.
        every_n_steps: Optimizer steps between two checkpoints within an epoch; None saves only at
            the start of an epoch.
    """

    @checked("callbacks.last")
    def __init__(self, *, dirpath: str, every_n_steps: PositiveInt | None) -> None:
        self._dirpath, self._every = Path(dirpath), every_n_steps
        self._saved_at: int | None = None
        self._resumed = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self._resumed:
            # Loggers receive this counter as the step. After resuming it is too high by 1:
            # https://github.com/Lightning-AI/pytorch-lightning/issues/13752
            trainer.fit_loop.epoch_loop._batches_that_stepped = step  # noqa: SLF001
            self._resumed, self._saved_at = False, step
        gradients_pending = batch_idx % trainer.accumulate_grad_batches != 0
        due = batch_idx == 0 or (self._every is not None and step % self._every == 0)
        if due and not gradients_pending and step > 0 and step != self._saved_at:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_at:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.flush()  # before the checkpoint, or a resumed run would lose these rows
        self._saved_at = trainer.global_step
        trainer.save_checkpoint(self._dirpath / LAST)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._resumed = True


def run_identity(config: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """Hash everything that determines the trained weights and the best checkpoint.

    All callbacks are included, except those of `CALLBACKS_WITHOUT_EFFECT`.

    Args:
        config: The resolved config.
        parents: Role -> hash of each input of the run.
    """
    callbacks = {
        name: node
        for name, node in (config["callbacks"] or {}).items()
        if node is not None and node.get("_target_") not in CALLBACKS_WITHOUT_EFFECT
    }
    # The identity does not depend on how the path of the run is written.
    without_path = json.dumps(callbacks).replace(json.dumps(str(config["run_dir"]))[1:-1], "")
    return sha256_json([{k: config[k] for k in _IDENTITY_KEYS}, without_path, dict(parents)])


def find_start(
    run_dir: Path, identity: str, *, resume: str, overwrite: bool
) -> Artifact | tuple[Path, int] | None:
    """Decide where training starts.

    Args:
        run_dir: Folder of the run.
        identity: See `run_identity`.
        resume: "auto", "true" or "false", see `Config.resume`.
        overwrite: Replace a run with another identity.

    Returns:
        The finished run, or (checkpoint, completed optimizer steps) to resume from, or None for a
        new run.

    Raises:
        ConfigError: The folder contains another run or other files, or has no checkpoint to resume.
        ArtifactError: All checkpoints are damaged.
    """
    if resume == "true":
        last = find_checkpoint(run_dir / CHECKPOINTS)
        if last is None:
            raise ConfigError(
                "resume=true, but there is no last.ckpt",
                where=run_dir,
                remedy="leave resume out to start a new run",
            )
        return last
    started = None
    with contextlib.suppress(OSError, ValueError):
        started = json.loads((run_dir / STARTED).read_bytes())["identity"]
    if started is not None and started != identity and not overwrite:
        raise ConfigError(
            "this folder contains a run of another config or store",
            where=run_dir,
            remedy="choose another run_dir=, or pass overwrite=true to replace it",
        )
    if started == identity and resume == "auto":
        if artifacts.exists(run_dir):
            return artifacts.load(run_dir, "run")
        if last := find_checkpoint(run_dir / CHECKPOINTS):
            print_line(f"train: resuming from {last[0]} after {last[1]} steps")
            return last
    # Only rank zero checks this: it may write to the folder before the other ranks get here.
    if started is None and launched_rank() == 0 and run_dir.is_dir() and not is_empty(run_dir):
        raise ConfigError(
            "this folder contains files that do not belong to a run",
            where=run_dir,
            remedy="choose another run_dir=",
        )
    return None


def find_checkpoint(checkpoints: Path) -> tuple[Path, int] | None:
    """Find the newest intact checkpoint.

    Prints a warning for a damaged last.ckpt, and returns the checkpoint before it.

    Args:
        checkpoints: Folder of last.ckpt.

    Returns:
        (path, completed optimizer steps), or None if there is no checkpoint.

    Raises:
        ArtifactError: All checkpoints are damaged.
    """
    damaged: ArtifactError | None = None
    for name in (LAST, PREVIOUS):
        path = checkpoints / name
        if path.is_file():
            try:
                step = int(read_checkpoint(path)["global_step"])
            except ArtifactError as cause:
                print_line(f"warning: {cause.what}: {path}")
                damaged = cause
            else:
                return path, step
    if damaged is not None:
        raise damaged
    return None


def check_checkpoint_fits(checkpoint: Path, module: pl.LightningModule) -> None:
    """Check that the weights of a checkpoint fit a module, without loading them.

    Raises:
        ConfigError: Names or shapes differ; the message has the config key and the weights.
    """
    state = read_checkpoint(checkpoint)["state_dict"]
    found = compare_weights(state, module)
    head: Any = module.head
    if isinstance(head, ShardedArcFace) and HEAD_WEIGHT in state:
        classes, dim = state[HEAD_WEIGHT].shape  # the head has no shape before `setup` shards it
        if classes != head.num_classes:
            wrong = (HEAD_WEIGHT, (classes, dim), (head.num_classes, dim))
            found = replace(found, mismatched=[*found.mismatched, wrong])
    if found.is_complete:
        return
    names = [*found.missing, *found.unexpected, *(name for name, _, _ in found.mismatched)]
    # The first part that differs is the cause: the neck depends on the backbone.
    part = next(part for prefix, part in _PARTS if any(name.startswith(prefix) for name in names))
    raise ConfigError(
        f"this checkpoint has another {part}: {found}",
        where=checkpoint,
        remedy="resume with the settings in the run's config.yaml, or choose another run_dir=",
    )
