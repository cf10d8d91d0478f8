"""What TensorBoard shows of a finished run: the embedding to walk in, and the worst mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from arcloop import artifacts
from arcloop.config.schema import EmbedSettings
from arcloop.config.value_types import NonNegativeInt, check
from arcloop.data import EmbeddingDataModule, Store
from arcloop.evaluation import Mistake, mistake_sheet
from arcloop.retrieval import load_model
from arcloop.training.callbacks.projector import most_images, write_projector


class TensorBoardPages(Callback):
    """Writes the projector's files and a picture of the worst mistakes, after the evaluation.

    Without a TensorBoard logger it does nothing; without an evaluation there are no mistakes.

    Args:
        run_dir: The run.
        embed: How to embed.
        num_projected: Images drawn from the gallery, and as many from the query split; 0 leaves
            the projector out.
    """

    def __init__(
        self, *, run_dir: str, embed: EmbedSettings, num_projected: NonNegativeInt
    ) -> None:
        check("callbacks.tensorboard", num_projected=(num_projected, NonNegativeInt))
        self._run_dir, self._embed = Path(run_dir), embed
        self._projected = most_images(2 * num_projected) // 2

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        logger = next((o for o in trainer.loggers if isinstance(o, TensorBoardLogger)), None)
        if logger is None or not trainer.is_global_zero:
            return
        datamodule = getattr(trainer, "datamodule", None)
        assert isinstance(datamodule, EmbeddingDataModule)
        if self._projected and (self._run_dir / "model.pt").is_file():
            self._project(datamodule.store, Path(logger.log_dir))
        mistakes = self._mistakes()
        if mistakes:
            sheet_HWC = mistake_sheet(
                mistakes,
                datamodule.store.classes,
                lambda split, row: datamodule.store.gather(split, np.asarray([row]))[0][0],
            )
            logger.experiment.add_image(
                "worst mistakes", sheet_HWC, trainer.global_step, dataformats="HWC"
            )

    def _project(self, store: Store, log_dir: Path) -> None:
        images, metadata = [], []
        for split in ("gallery", "query"):
            rows = _draw(store.rows(split), self._projected)
            images_NHWC, labels_N = store.gather(split, rows)
            images.append(images_NHWC)
            metadata += [
                (store.classes[label], split, row)
                for label, row in zip(labels_N.tolist(), rows.tolist(), strict=True)
            ]
        images_NHWC = np.concatenate(images)
        model = load_model(self._run_dir / "model.pt", self._embed.device)
        size = self._embed.batch_size
        batches = [images_NHWC[at : at + size] for at in range(0, len(images_NHWC), size)]
        embeddings_ND = np.concatenate([model.embed(batch) for batch in batches])
        write_projector(log_dir, embeddings_ND, metadata, images_NHWC)

    def _mistakes(self) -> list[Mistake]:
        folder = self._run_dir / "evaluation"
        if not artifacts.exists(folder):
            return []
        found = json.loads((folder / "mistakes.json").read_bytes())
        return [Mistake(**mistake) for mistake in found]


def _draw(rows: int, count: int) -> npt.NDArray[np.int64]:
    """Draw at most `count` of `rows` rows, ascending, the same ones in every run."""
    drawn = np.random.default_rng(0).choice(rows, min(rows, count), replace=False)
    return np.sort(drawn).astype(np.int64)
