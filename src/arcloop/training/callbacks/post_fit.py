"""Callbacks that run after the fit: export to TorchScript, gallery and index, and evaluation.

They call the same functions as the commands `embed`, `index` and `evaluate`. Rank zero scripts the
model, builds the index and writes the report. Every rank embeds and evaluates its part of the
gallery and the queries, so every rank must call the same collective operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from arcloop.config.evaluation import EvaluateSettings
from arcloop.config.schema import CalibrationSettings, EmbedSettings
from arcloop.data import Store
from arcloop.display.terminal import print_line
from arcloop.distributed.process_group import current_process_group
from arcloop.errors import ConfigError
from arcloop.evaluation.evaluate import evaluate
from arcloop.evaluation.incumbent import check_incumbent
from arcloop.export.formats import TorchScript
from arcloop.export.torchscript import export_scripted, require_scriptable
from arcloop.retrieval import AutoIndex, FaissIndex
from arcloop.retrieval.embed import embed_gallery
from arcloop.retrieval.exclusion import require_groups
from arcloop.retrieval.index import build_index
from arcloop.training.module import EmbeddingModule

_NUM_GOLDEN = 32  # number of images in golden.npz


@dataclass(eq=False, kw_only=True)
class ExportScripted(Callback):
    """Scripts the best checkpoint to model.pt and compares it with the eager model on val images.

    Other formats are exported after the run is complete, so that their failure does not affect it.

    Args:
        run_dir: Folder of the run.
        torchscript: Settings of the scripted model.
    """

    run_dir: str
    torchscript: TorchScript

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, EmbeddingModule)
        require_scriptable(pl_module.embedder)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if current_process_group().rank:
            return
        assert isinstance(pl_module, EmbeddingModule)
        store = get_store(trainer)
        rows = np.linspace(0, store.rows("val") - 1, _NUM_GOLDEN).astype(np.int64)
        golden_NHWC, _ = store.gather("val", np.unique(rows))
        difference = export_scripted(
            pl_module.embedder,
            best_checkpoint(trainer),
            golden_NHWC,
            Path(self.run_dir),
            max_abs_diff=self.torchscript.max_abs_diff,
            conversion=store.conversion,
            quality=pl_module.head.norm_is_quality,
        )
        print_line(f"model.pt: scripted, within {difference:.1e} of the eager model")


@dataclass(eq=False, kw_only=True)
class BuildIndex(Callback):
    """Embeds the gallery with model.pt and builds the faiss index.

    Args:
        run_dir: Folder of the run.
        embed: Settings of the embedding.
        index: The index to build.
        calibration: Settings of the open-set threshold.
    """

    run_dir: str
    embed: EmbedSettings
    index: FaissIndex | AutoIndex
    calibration: CalibrationSettings

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        group = current_process_group()
        run_dir, store = Path(self.run_dir), get_store(trainer).artifact.path
        model, gallery = run_dir / "model.pt", run_dir / "gallery"
        embed_gallery(model, store, gallery, self.embed, group=group)
        if group.rank == 0:
            build_index(
                model,
                store,
                gallery,
                run_dir / "index",
                index=self.index,
                calibration=self.calibration,
                embed_settings=self.embed,
                held_out=trainer.datamodule.held_out_classes,  # type: ignore[attr-defined]
            )


@dataclass(eq=False, kw_only=True)
class Evaluate(Callback):
    """Evaluates model and index on the query split and writes the report.

    Args:
        run_dir: Folder of the run.
        embed: Settings of the embedding.
        settings: Settings of the evaluation.
    """

    run_dir: str
    embed: EmbedSettings
    settings: EvaluateSettings

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.settings.exclude_same_group:  # fails before training
            require_groups(get_store(trainer), get_store(trainer))
        if self.settings.gate.versus is not None:
            check_incumbent(self.settings.gate.versus, get_store(trainer).image_shape)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        run_dir = Path(self.run_dir)
        evaluate(
            run_dir,
            get_store(trainer).artifact.path,
            run_dir / "gallery",
            run_dir / "index",
            run_dir / "evaluation",
            settings=self.settings,
            embed_settings=self.embed,
            group=current_process_group(),
        )


def best_checkpoint(trainer: pl.Trainer) -> Path:
    """Return the path of the best checkpoint.

    Raises:
        ConfigError: No ModelCheckpoint callback has saved one.
    """
    callback: Any = trainer.checkpoint_callback
    if not isinstance(callback, ModelCheckpoint) or not callback.best_model_path:
        raise ConfigError(
            "no best checkpoint was saved, so there is nothing to export",
            where="callbacks.checkpoint",
            remedy="do not remove callbacks.checkpoint, and train until the first validation",
        )
    return Path(callback.best_model_path)


def get_store(trainer: pl.Trainer) -> Store:
    """Return the store that a trainer trains on."""
    store: Store = trainer.datamodule.store  # type: ignore[attr-defined]  # set by `fit`
    return store
