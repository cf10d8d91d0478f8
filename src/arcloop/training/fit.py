"""`train`: trains a model on a store and writes a finished run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.utilities import rank_zero_only

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import sha256_file, write_bytes, write_json
from arcloop.artifacts.writer import write_manifest
from arcloop.config.composition import quote_override
from arcloop.config.plugins import record_plugins
from arcloop.config.project import record_project
from arcloop.data import EmbeddingDataModule
from arcloop.display.terminal import console, print_line
from arcloop.distributed.process_group import current_process_group, launched_rank
from arcloop.errors import ArcloopError, ResourceError, first_line, write_error
from arcloop.export.formats import extra_formats
from arcloop.export.run import dry_run_formats, export_run
from arcloop.training.callbacks.last_checkpoint import EarlyEnd
from arcloop.training.callbacks.progress import EpochTimer
from arcloop.training.callbacks.pruning import Report, ReportEpochs
from arcloop.training.loggers import RUN_ID_FILES, RunLogger
from arcloop.training.module import EmbeddingModule
from arcloop.training.preconditions import check_first_validation
from arcloop.training.resume import (
    CHECKPOINTS,
    CONFIG,
    STARTED,
    check_checkpoint_fits,
    find_start,
    lock_run,
    run_identity,
)  # fmt: skip
from arcloop.training.setup import TrainingSetup, num_processes, silence_lightning
from arcloop.training.tensorboard_logger import TensorBoardLogger

_LOGGER_FOLDERS = ("tensorboard", "wandb")
_NOT_LISTED = (*_LOGGER_FOLDERS, artifacts.JOB_RECORD, artifacts.JOB_LOG)
_RUN_FILES = (
    artifacts.MANIFEST, artifacts.CLEANED, STARTED, CONFIG, CHECKPOINTS, "model.pt", "golden.npz",
    "metrics.csv", "gallery", "index", "evaluation", "export", "other_data", *_LOGGER_FOLDERS,
    *RUN_ID_FILES
)  # fmt: skip
_BF16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def train(
    setup: TrainingSetup,
    store: Path,
    run_dir: Path,
    *,
    resume: str,
    overwrite: bool,
    config: Mapping[str, Any],
    overrides: Sequence[str],
    report: Report | None = None,
) -> Artifact:
    """Train a model, run the post-fit callbacks, and write the manifest of the run.

    A finished run with the same setup and store is returned without training.

    Args:
        setup: What to train and how.
        store: Folder of the `store` to train on.
        run_dir: Folder of the `run`.
        resume: "auto", "true" or "false", see `Config.resume`.
        overwrite: Replace a run with another setup.
        config: The resolved config, recorded in the run.
        overrides: The Hydra overrides of the config, recorded in the run.
        report: Takes the monitored metric of each epoch and decides whether to end the training.

    Raises:
        TrainingPruned: `report` decided to end the training. The run is not finished.
        ConfigError: `run_dir` contains another run, or there is no checkpoint to resume from.
        DivergedError: The loss is not finite.
        ResourceError: The folder cannot be written, or memory ran out.
        KeyboardInterrupt: The user interrupted training; `resume` continues from last.ckpt.
    """
    # Lightning reads the rank from variables of Slurm too, which may be those of another task.
    rank_zero_only.rank = launched_rank()  # type: ignore[attr-defined]
    with lock_run(run_dir), silence_lightning():
        datamodule = setup.make_datamodule(store)
        parents = {"store": datamodule.store.artifact.sha256}
        if (weights := setup.find_weights()) is not None:
            parents["backbone_weights"] = sha256_file(weights)
        held_out = datamodule.held_out_classes
        identity = run_identity(config, parents, held_out)
        start = find_start(
            run_dir, identity, parents, config, held_out, resume=resume, overwrite=overwrite
        )
        if isinstance(start, Artifact):
            print_line(f"train: {run_dir} was already trained with this config")
            return _with_exports(start, setup, store)
        parts = start.with_part(identity, overrides, config)
        module = setup.make_module(datamodule.store.image_shape, datamodule.num_classes)
        module.head.set_class_sizes(torch.from_numpy(datamodule.class_sizes))
        datamodule.class_vectors = module.gather_class_vectors
        if start.checkpoint is not None:
            check_checkpoint_fits(start.checkpoint, module)
        if launched_rank() == 0:
            dry_run_formats(module.embedder, extra_formats(setup.export))
        trainer = setup.make_trainer(
            EpochTimer(run_dir, print_epochs=not console().is_terminal),
            EarlyEnd(keep=resume == "auto"),
            *([] if report is None else [ReportEpochs(setup.monitor, report)]),
        )
        # These raise errors before the run is created.
        setup.check_index(module.embedder.embedding_dim, datamodule.store.rows("gallery"))
        check_first_validation(trainer, len(datamodule.make_batches(num_processes(trainer))))
        if launched_rank() == 0:
            begun = {"identity": identity, "parents": parents, "parts": parts}
            begun["held_out_classes"] = held_out
            _prepare_folder(run_dir, begun, config, keep_files=start.checkpoint is not None)
            for logger in trainer.loggers:
                if isinstance(logger, RunLogger | TensorBoardLogger):
                    logger.begin(config, start.step)
            _print_mode(trainer, setup, datamodule)
        _fit(trainer, module, datamodule, start.checkpoint, setup)
        score = getattr(trainer.checkpoint_callback, "best_model_score", None)
        objective = None if score is None else float(score)  # of a sweep
        info: dict[str, Any] = {"identity": identity, "overrides": list(overrides)}
        info |= {"objective": objective, "held_out_classes": held_out}
        info |= record_project() | record_plugins()
        info["normalisation"] = module.embedder.normalisation()
        if len(parts) > 1:
            info["parts"] = parts  # `reproduce` repeats them
        group = current_process_group()
        if group.rank == 0:
            write_manifest(
                run_dir, "run", config=config, parents=parents, info=info, exclude=_NOT_LISTED
            )
        group.barrier()
        return _with_exports(artifacts.read(run_dir, "run"), setup, store)


def _fit(
    trainer: pl.Trainer,
    module: EmbeddingModule,
    datamodule: EmbeddingDataModule,
    checkpoint: Path | None,
    setup: TrainingSetup,
) -> None:
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    except torch.OutOfMemoryError as cause:
        size = setup.loader.batch_size
        raise ResourceError(
            f"the memory of {trainer.strategy.root_device} ran out with batches of {size} in"
            f" {trainer.precision}: {str(cause).partition('. ')[0]}",
            remedy=f"set loader.batch_size={max(size // 2, 1)} and"
            " trainer.accumulate_grad_batches=2, or trainer.precision=bf16-mixed, or"
            " loader.on_device=false",
        ) from None
    except (RuntimeError, ConnectionError) as cause:
        if "DataLoader worker" not in str(cause) and not isinstance(cause, ConnectionError):
            raise
        raise ResourceError(
            f"a process that loads batches ended: {first_line(cause)}",
            where="loader.num_workers",
            remedy="set loader.num_workers=0, or give /dev/shm more memory, for example with"
            " `docker run --shm-size=1g`",
        ) from None
    except SystemExit as cause:  # Lightning converts KeyboardInterrupt to SystemExit
        if isinstance(cause.__context__, KeyboardInterrupt):
            raise cause.__context__ from None
        raise


def _with_exports(run: Artifact, setup: TrainingSetup, store: Path) -> Artifact:
    """Export the finished run to the extra formats; errors state that the run is complete."""
    formats = extra_formats(setup.export)
    if not formats or launched_rank() != 0:
        return run
    try:
        export_run(
            run.path,
            formats,
            run.path / "export",
            backbone=setup.backbone,
            embedder=setup.embedder,
            store=store,
            reuse=True,
        )
    except ArcloopError as cause:
        command = f"arcloop export {quote_override('run_dir', str(run.path))} export=..."
        raise type(cause)(
            f"the run is trained and complete, but an export failed: {cause.what}",
            where=cause.where,
            remedy=f"{cause.remedy}; then run `{command}`",
        ) from cause
    return run


def _prepare_folder(
    run_dir: Path, begun: Mapping[str, Any], config: Mapping[str, Any], *, keep_files: bool
) -> None:
    """Create the folder, remove old files unless they are kept, and write `STARTED` and the config.

    The manifest is removed first, so that the folder is not a finished run while files are removed.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / artifacts.MANIFEST).unlink(missing_ok=True)
        for name in () if keep_files else _RUN_FILES:
            path = run_dir / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        write_json(run_dir / STARTED, begun)
        write_bytes(run_dir / CONFIG, yaml.safe_dump(dict(config), sort_keys=False).encode())
    except OSError as cause:
        raise write_error(run_dir, cause) from cause


def _print_mode(trainer: pl.Trainer, setup: TrainingSetup, datamodule: EmbeddingDataModule) -> None:
    mode = "deterministic" if torch.are_deterministic_algorithms_enabled() else "not deterministic"
    if torch.is_deterministic_algorithms_warn_only_enabled():
        mode = "deterministic where possible"
    print_line(
        f"train: {trainer.world_size} x {trainer.strategy.root_device.type}, {trainer.precision},"
        f" batch {setup.loader.batch_size}, {mode}{', compiled' if setup.compile else ''},"
        f" {torch.get_num_threads()} threads"
    )
    if num_held_out := len(datamodule.held_out_classes):
        print_line(
            f"train: {num_held_out} of {datamodule.store.num_train_classes} classes are held out"
            " for the calibration of the threshold"
        )
    on_cpu = isinstance(trainer.accelerator, CPUAccelerator)
    if on_cpu and "bf16" in str(trainer.precision) and cpu_has_bf16() is False:
        print_line("note: this CPU has no bf16 instructions; trainer.precision=32-true is faster")


def cpu_has_bf16() -> bool | None:
    """Return whether the CPU has bf16 instructions; None if unknown."""
    if not hasattr(torch.cpu, "get_capabilities"):  # older versions of torch
        return None
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in _BF16_CAPABILITIES)
