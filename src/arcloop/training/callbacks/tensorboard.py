"""TensorBoard pages of a finished run: the embedding projector and the worst mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from arcloop import artifacts
from arcloop.config.schema import EmbedSettings
from arcloop.config.value_types import NonNegativeInt, checked
from arcloop.data import Store
from arcloop.evaluation import Mistake, mistake_sheet
from arcloop.retrieval import load_model
from arcloop.training.callbacks.post_fit import get_store

_THUMBNAIL = 48  # side of a thumbnail in pixels
_MAX_PROJECTED = (8192 // _THUMBNAIL) ** 2  # the sprite has at most 8192 pixels per side
_METADATA = ["class", "split", "row"]


class TensorBoardPages(Callback):
    """Adds the embedding projector and the worst mistakes to TensorBoard after the evaluation.

    Does nothing without a TensorBoard logger. Without an evaluation, it adds no mistakes.

    Args:
        run_dir: Folder of the run.
        embed: Settings of the embedding.
        num_projected: Number of images that are drawn from the gallery split, and from the query
            split; 0 disables the projector.
    """

    @checked("callbacks.tensorboard")
    def __init__(
        self, *, run_dir: str, embed: EmbedSettings, num_projected: NonNegativeInt
    ) -> None:
        self._run_dir, self._embed = Path(run_dir), embed
        self._images_per_split = min(num_projected, _MAX_PROJECTED // 2)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        logger = next((o for o in trainer.loggers if isinstance(o, TensorBoardLogger)), None)
        if logger is None or not trainer.is_global_zero:
            return
        store = get_store(trainer)
        if self._images_per_split and (self._run_dir / "model.pt").is_file():
            self._add_projector(logger, store, trainer.global_step)
        evaluation = self._run_dir / "evaluation"
        found = artifacts.exists(evaluation)
        if mistakes := json.loads((evaluation / "mistakes.json").read_bytes()) if found else []:
            sheet_HWC = mistake_sheet(
                [Mistake(**mistake) for mistake in mistakes],
                store.classes,
                lambda split, row: store.gather(split, np.asarray([row]))[0][0],
            )
            logger.experiment.add_image(
                "worst mistakes", sheet_HWC, trainer.global_step, dataformats="HWC"
            )

    def _add_projector(self, logger: TensorBoardLogger, store: Store, step: int) -> None:
        images, metadata = [], []
        for split in ("gallery", "query"):
            num_rows = store.rows(split)
            count = min(num_rows, self._images_per_split)
            rows = np.sort(np.random.default_rng(0).choice(num_rows, count, replace=False))
            images_NHWC, labels_N = store.gather(split, rows)
            images.append(images_NHWC)
            metadata += [
                [to_cell(store.classes[label]), split, str(row)]
                for label, row in zip(labels_N.tolist(), rows.tolist(), strict=True)
            ]
        images_NHWC = np.concatenate(images)
        model = load_model(self._run_dir / "model.pt", self._embed.device)
        size = self._embed.batch_size
        batches = [images_NHWC[at : at + size] for at in range(0, len(images_NHWC), size)]
        logger.experiment.add_embedding(
            np.concatenate([model.embed(batch) for batch in batches]),
            metadata=metadata,
            metadata_header=_METADATA,
            label_img=make_thumbnails(images_NHWC),
            global_step=step,
            tag="gallery-and-query",
        )


def make_thumbnails(images_NHWC: npt.NDArray[np.uint8]) -> Tensor:
    """Scale images down to the projector's square thumbnails, on a black background.

    Args:
        images_NHWC: uint8 images with 1 or 3 channels.

    Returns:
        float32 [N, 3, S, S] in [0, 1], S at most 48 and at most the longer side of the images.
    """
    images_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2) / 255
    longer = max(images_NCHW.shape[2:])
    side = min(_THUMBNAIL, longer)
    size = [max(1, round(length * side / longer)) for length in images_NCHW.shape[2:]]
    scaled_NCHW = F.interpolate(images_NCHW, size, mode="area")
    padded_NCHW = F.pad(scaled_NCHW, (0, side - size[1], 0, side - size[0]))
    return padded_NCHW.expand(-1, 3, -1, -1)


def to_cell(name: str) -> str:
    r"""Make a class name one non-empty cell of a TSV file.

    >>> to_cell("a\tb"), to_cell("")
    ('a b', '-')
    """
    return " ".join(name.split()) or "-"
