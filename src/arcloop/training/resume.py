"""Resuming a run: its lock, its identity, its last checkpoint, and where training starts.

A run that was interrupted at any point and resumed writes the same bytes as an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import SYSTEM_NAMES, sha256_json, try_lock, write_bytes
from arcloop.config.recorded import flatten
from arcloop.display.terminal import print_line
from arcloop.distributed.process_group import launched_rank
from arcloop.errors import ArtifactError, ConfigError, ResourceError
from arcloop.models import compare_weights
from arcloop.models.checkpoints import LAST, PREVIOUS, read_checkpoint
from arcloop.training.module import EmbeddingModule
from arcloop.training.setup import NODES

CHECKPOINTS, CONFIG = "checkpoints", "config.yaml"
STARTED = ".begun.json"
"""File with the identity, the inputs and the parts of the run, written when training starts."""
CALLBACKS_WITHOUT_EFFECT = frozenset({
    "arcloop.training.LastCheckpoint", "arcloop.training.ExportScripted",
    "arcloop.training.BuildIndex", "arcloop.training.Evaluate",
    "arcloop.training.TensorBoardPages", "pytorch_lightning.callbacks.LearningRateMonitor",
    "pytorch_lightning.callbacks.DeviceStatsMonitor",
})  # fmt: skip
"""`_target_` of the callbacks that change neither the weights nor the best checkpoint."""
_DATA_KEYS = ("data", "store_dir")
_IDENTITY_KEYS = (
    "seed", "threads", "monitor", "monitor_mode", "compile",
    *(name for name in NODES if name not in ("logger", "callbacks", "export", "calibration")),
)  # fmt: skip
_PARTS = (
    ("embedder.backbone.", "backbone"),
    ("embedder.", "embedder (embedder.embedding_dim, or the size of the images)"),
    ("", "head"),
)
"""Prefix of the names of weights -> the part of the config that they belong to."""


@dataclass(frozen=True)
class Start:
    """Where training starts.

    Attributes:
        checkpoint: Checkpoint to resume from; None starts a new run.
        step: Completed optimizer steps of the checkpoint.
        parts: The parts of the run before `step`. Each part was trained with its own config: its
            first step, identity, overrides and config.
    """

    checkpoint: Path | None = None
    step: int = 0
    parts: list[dict[str, Any]] = field(default_factory=list)

    def with_part(
        self, identity: str, overrides: Sequence[str], config: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Return `parts`, and the part that starts here unless it continues the last one."""
        if self.parts and self.parts[-1]["identity"] == identity:
            return self.parts
        part = {"step": self.step, "identity": identity, "overrides": list(overrides)}
        return [*self.parts, {**part, "config": dict(config)}]


@contextlib.contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Lock the folder of a run while rank zero trains.

    The operating system releases the lock when the process ends, even if it is killed. The lock
    works between hosts if the shared file system supports locks, as NFS and Lustre do.

    Raises:
        ResourceError: Another process is training in this folder, or the parent folder cannot be
            written.
    """
    if launched_rank() > 0:
        yield
        return
    run_dir = run_dir.resolve()
    lock, holder = try_lock(run_dir), run_dir.with_name(f".{run_dir.name}.holder")
    if lock is None:
        name = "another process"
        with contextlib.suppress(OSError):  # the process has not written it yet
            name = holder.read_text(encoding="utf-8")
        raise ResourceError(
            f"{name} is training in this folder",
            where=run_dir,
            remedy="wait until it ends, or choose another run_dir=",
        )
    try:
        write_bytes(holder, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        for path in (holder, Path(lock.lock_file)):
            path.unlink(missing_ok=True)
        lock.release()


def run_identity(
    config: Mapping[str, Any], parents: Mapping[str, str], held_out: Sequence[str] = ()
) -> str:
    """Hash everything that determines the trained weights and the best checkpoint.

    All callbacks are included, except those of `CALLBACKS_WITHOUT_EFFECT`.

    Args:
        config: The resolved config.
        parents: Role -> hash of each input of the run.
        held_out: Classes that are left out of training.
    """
    callbacks = {
        name: node
        for name, node in (config["callbacks"] or {}).items()
        if node is not None and node.get("_target_") not in CALLBACKS_WITHOUT_EFFECT
    }
    # The identity does not depend on how the path of the run is written.
    without_path = json.dumps(callbacks).replace(json.dumps(str(config["run_dir"]))[1:-1], "")
    settings = {key: config[key] for key in _IDENTITY_KEYS}
    return sha256_json(
        [settings, without_path, dict(parents), *([[*held_out]] if held_out else [])]
    )


def find_start(
    run_dir: Path,
    identity: str,
    parents: Mapping[str, str],
    config: Mapping[str, Any],
    held_out: Sequence[str] = (),
    *,
    resume: str,
    overwrite: bool,
) -> Artifact | Start:
    """Decide where training starts.

    Args:
        run_dir: Folder of the run.
        identity: See `run_identity`.
        parents: Role -> hash of each input of the run.
        config: The resolved config.
        held_out: Classes that are left out of training.
        resume: "auto", "true" or "false", see `Config.resume`.
        overwrite: Replace a run with another identity.

    Returns:
        The finished run, or where to start.

    Raises:
        ConfigError: The folder contains another run or other files, has no checkpoint to resume, or
            its run was trained on other data.
        ArtifactError: All checkpoints are damaged.
    """
    recorded: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        recorded = json.loads((run_dir / STARTED).read_bytes())
    if resume == "true":
        last = find_checkpoint(run_dir / CHECKPOINTS)
        if last is None:
            raise ConfigError(
                "resume=true, but there is no last.ckpt",
                where=run_dir,
                remedy="leave resume out to start a new run; callbacks.last.keep=false removes"
                " last.ckpt when a run is finished",
            )
        if recorded.get("parents", parents)["store"] != parents["store"]:
            raise _other_data_error(run_dir, config)
        if (before := recorded.get("held_out_classes", [])) != [*held_out]:
            raise ConfigError(
                f"resume=true, but this run was trained without {len(before)} classes, and now"
                f" {len(held_out)} classes, or others, are held out",
                where=run_dir,
                remedy="resume it with its seed and its calibration.held_out_classes",
            )
        return _start_at(last, recorded)
    started = recorded.get("identity")
    if started is not None and started != identity and not overwrite:
        raise ConfigError(
            "this folder contains a run of another config or store",
            where=run_dir,
            remedy="choose another run_dir=, or pass overwrite=true to replace it",
        )
    if started == identity and resume == "auto":
        if artifacts.exists(run_dir) and not artifacts.is_cleaned(run_dir):
            return artifacts.load(run_dir, "run")
        if last := find_checkpoint(run_dir / CHECKPOINTS):
            print_line(f"train: resuming from {last[0]} after {last[1]} steps")
            return _start_at(last, recorded)
    # Only rank zero checks this: it may write to the folder before the other ranks get here.
    # The output of a job of a sweep is recorded before its training starts.
    known = {*SYSTEM_NAMES, artifacts.JOB_LOG}
    is_new = started is None and launched_rank() == 0 and run_dir.is_dir()
    if is_new and any(entry.name not in known for entry in run_dir.iterdir()):
        raise ConfigError(
            "this folder contains files that do not belong to a run",
            where=run_dir,
            remedy="choose another run_dir=",
        )
    return Start()


def _start_at(checkpoint: tuple[Path, int], recorded: Mapping[str, Any]) -> Start:
    path, step = checkpoint
    return Start(path, step, [p for p in recorded.get("parts", ()) if p["step"] < step])


def _other_data_error(run_dir: Path, config: Mapping[str, Any]) -> ConfigError:
    """Return an error that names the differences between the data of a run and of the config."""
    before: dict[str, Any] = {}
    with contextlib.suppress(OSError):
        before = yaml.safe_load((run_dir / CONFIG).read_bytes())
    old, new = (dict(flatten({key: c.get(key) for key in _DATA_KEYS})) for c in (before, config))
    changed = [f"{k}={new[k]} instead of {old.get(k)}" for k in new if new[k] != old.get(k)]
    what = ", ".join(changed[:3]) or "its images or labels have changed since"
    return ConfigError(
        f"resume=true, but this run was trained on other data: {what}",
        where=run_dir,
        remedy="resume it with its data, or train in another run_dir=; there"
        f" backbone_weights.file={run_dir / CHECKPOINTS / 'best.ckpt'} starts from its backbone",
    )


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


def check_checkpoint_fits(checkpoint: Path, module: EmbeddingModule) -> None:
    """Check that a checkpoint fits a module and its optimizer, without loading it.

    Raises:
        ConfigError: Names or shapes differ; the message has the config key and the weights.
    """
    content = read_checkpoint(checkpoint)
    found = compare_weights(content["state_dict"], module)
    if found.is_complete:
        _check_groups(content["optimizer_states"][0], module, checkpoint)
        return
    names = [*found.missing, *found.unexpected, *(name for name, _, _ in found.mismatched)]
    # The first part that differs is the cause: the neck depends on the backbone.
    part = next(part for prefix, part in _PARTS if any(name.startswith(prefix) for name in names))
    raise ConfigError(
        f"this checkpoint has another {part}: {found}",
        where=checkpoint,
        remedy="resume with the settings in the run's config.yaml, or choose another run_dir=",
    )


def _check_groups(state: Mapping[str, Any], module: EmbeddingModule, checkpoint: Path) -> None:
    """Check the embedder's parameter groups; a sharded head has no parameters yet."""
    states = (state, module.make_optimizer(nn.ModuleList()).state_dict())
    names = [[group.get("name", "") for group in s["param_groups"]] for s in states]
    before, now = ([name for name in part if not name.startswith("head")] for part in names)
    if before != now:
        raise ConfigError(
            f"the embedder's parameter groups differ in number or names: {len(before)} in this"
            f" checkpoint, {len(now)} with this config",
            where=checkpoint,
            remedy="resume with the run's optimizer.layer_decay and optimizer.backbone_lr_factor",
        )
