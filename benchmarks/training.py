"""Training through Lightning, the store and the loader, against a bare loop over tensors in memory.

Same network, head, optimizer, schedule, augmentation, precision and batch size.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import open_dict
from pytorch_lightning.callbacks import Callback

from arcloop.compose import compose_config
from arcloop.data import Store
from arcloop.steps import build
from arcloop.training import NODES, Recipe
from arcloop.training.quiet import quiet
from benchmarks.measure import Comparison, alternate


def compare(store: Path, overrides: list[str], *, rounds: int = 5) -> Comparison:
    """Images per second of one epoch each."""
    config = compose_config(["experiment=mnist", "trainer.max_epochs=1", *overrides])
    with open_dict(config):
        config.callbacks, config.logger = {}, {}
        for name in ("logger", "limit_val_batches", "enable_checkpointing"):
            config.trainer[name] = False if name != "limit_val_batches" else 0
    recipe = Recipe(**{n: build(config, n) for n in NODES}, seed=0, monitor=config.monitor)
    opened = Store.open(store)
    images_NHWC, labels_N = opened.gather("train", torch.arange(opened.rows("train")).numpy())
    images_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)
    labels = torch.from_numpy(labels_N)
    precision = str(config.trainer.precision)
    return alternate(
        f"train, {precision}, batch {recipe.loader.batch_size}, vs bare loop",
        lambda: _through_lightning(recipe, store),
        lambda: _bare_loop(recipe, opened, images_NCHW, labels, precision),
        unit="images/s",
        target=0.95,
        rounds=rounds,
    )


def _through_lightning(recipe: Recipe, store: Path) -> float:
    watch = _Watch()
    with quiet():
        datamodule = recipe.make_datamodule(store)
        module = recipe.make_module(datamodule.image_shape, datamodule.num_classes)
        recipe.make_trainer(watch).fit(module, datamodule=datamodule)
    return watch.images / watch.seconds


def _bare_loop(
    recipe: Recipe, store: Store, images: torch.Tensor, labels: torch.Tensor, precision: str
) -> float:
    module = recipe.make_module(store.image_shape, len(store.classes))
    embedder, head, augmentation = module.embedder, module.head, module.augmentation
    embedder.train(), head.train()
    batch = recipe.loader.batch_size
    steps = len(labels) // batch
    optimizer = recipe.optimizer(embedder, head)
    scheduler = recipe.scheduler(optimizer, steps)
    generator = torch.default_generator
    start = time.perf_counter()
    order = torch.randperm(len(labels))
    for step in range(steps):
        rows = order[step * batch : (step + 1) * batch]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision.startswith("bf16")):
            pixels = augmentation(images[rows].float(), generator)
            loss = head(embedder.features(pixels), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return steps * batch / (time.perf_counter() - start)


class _Watch(Callback):
    def __init__(self) -> None:
        self.images, self.seconds, self._start = 0, 0.0, 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        self.images += len(batch[1])
        self.seconds = time.perf_counter() - self._start
