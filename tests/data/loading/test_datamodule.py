import ast
import multiprocessing
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from tests.data.conftest import synthetic_source

from arcloop.config.schema import LoaderSettings
from arcloop.data import EmbeddingDataModule, prepare
from arcloop.data.loading.hard_classes import HardClassBatches
from arcloop.data.loading.sampler import ClassBalancedBatches, PKBatches, ShuffledBatches
from arcloop.errors import ArtifactError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """50 rows of train, 20 of val."""
    path = tmp_path_factory.mktemp("data") / "store"
    prepare(synthetic_source(channels=3, image_size=[8, 6]), path)
    return path


def datamodule(store, *, sampler=ShuffledBatches, hold_out=lambda _: [], **changed):
    settings = {"batch_size": 8, "eval_batch_size": 9, "num_workers": 0, "prefetch_factor": 2,
                "on_device": False}  # fmt: skip
    return EmbeddingDataModule(store, LoaderSettings(**(settings | changed)), sampler, 0, hold_out)


def test_batch(store):
    module = datamodule(store)
    images, labels = next(iter(module.train_dataloader()))
    assert images.shape == (8, 3, 8, 6)
    assert images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64
    rows = next(iter(module.train_dataloader().sampler))
    expected, expected_labels = (
        synthetic_source(channels=3, image_size=[8, 6]).open().generate("train", 0, 50)
    )
    assert (images.permute(0, 2, 3, 1).numpy() == expected[rows]).all()
    assert (labels.numpy() == expected_labels[rows]).all()


@pytest.mark.parametrize("where", [{}, {"on_device": True}, {"num_workers": 1}])
@pytest.mark.parametrize("sampler", [ShuffledBatches, partial(PKBatches, images_per_class=4)])
def test_held_out_classes_are_not_in_train_and_the_others_are_renumbered(store, sampler, where):
    module = datamodule(store, sampler=sampler, hold_out=lambda _: ["class-1"], **where)
    assert module.held_out_classes == ["class-1"]
    assert module.num_classes == 2
    pixels, labels = synthetic_source(channels=3, image_size=[8, 6]).open().generate("train", 0, 50)
    class_of = {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}
    found = set()
    for images, new_labels in module.train_dataloader():
        for image, new_label in zip(images.permute(0, 2, 3, 1).numpy(), new_labels, strict=True):
            found.add((class_of[np.ascontiguousarray(image).tobytes()], int(new_label)))
    assert found == {(0, 0), (2, 1)}
    val_labels = torch.cat([labels for _, labels in module.val_dataloader()])
    assert val_labels.unique().tolist() == [0, 1, 2]


def test_an_epoch_contains_every_row_of_the_trained_classes_once(store):
    module = datamodule(store, hold_out=lambda _: ["class-0"], batch_size=3)
    labels = torch.cat([labels for _, labels in module.train_dataloader()])
    assert labels.bincount().tolist() == [17, 16]


def test_val_contains_all_rows_in_order(store):
    module = datamodule(store)
    batches = list(module.val_dataloader())
    assert [len(labels) for _, labels in batches] == [9, 9, 2]
    expected, _ = synthetic_source(channels=3, image_size=[8, 6]).open().generate("val", 0, 20)
    images = torch.cat([images for images, _ in batches]).permute(0, 2, 3, 1)
    assert (images.numpy() == expected).all()


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_worker_processes_load_the_same_batches(store, start_method):
    alone = list(datamodule(store).train_dataloader())
    loader = datamodule(store, num_workers=1).train_dataloader()
    loader.multiprocessing_context = multiprocessing.get_context(start_method)
    for _ in range(2):  # the second epoch reuses the workers
        together = list(loader)
        assert len(together) == len(alone)
        for (images, labels), (expected, expected_labels) in zip(together, alone, strict=True):
            assert torch.equal(images, expected)
            assert torch.equal(labels, expected_labels)
            assert images.is_contiguous(memory_format=torch.channels_last)


def test_missing_store_is_reported(tmp_path):
    with pytest.raises(ArtifactError, match="no store here"):
        datamodule(tmp_path / "nowhere").train_dataloader()


class Recorder(pl.LightningModule):
    """Records the images of each training step, and has class vectors that change."""

    def __init__(self):
        super().__init__()
        self.vectors = torch.nn.Parameter(torch.eye(3, 2))
        self.seen = []

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.seen.append((self.current_epoch, images.numpy().tobytes()))
        return (images.float().mean() * self.vectors[labels]).sin().sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(store, folder, *, resume=None, workers=0, limit=1.0, sampler=ShuffledBatches, **when):
    module, data = Recorder(), datamodule(store, num_workers=workers, sampler=sampler)
    data.class_vectors = lambda: module.vectors.detach().clone()
    pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        limit_train_batches=limit,
        callbacks=[ModelCheckpoint(folder, save_top_k=-1, filename="{step}", **when)],
    ).fit(
        module, datamodule=data,
        ckpt_path=resume, weights_only=True,
    )  # fmt: skip
    return module.seen


HARD = partial(HardClassBatches, images_per_class=4, classes_per_group=2)
STEPS = {"every_n_train_steps": 1}
EPOCHS = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
VALIDATIONS = {"every_n_epochs": 1, "save_on_train_epoch_end": False}


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended")
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")
@pytest.mark.parametrize(
    ("step", "when"),
    [
        (2, STEPS),  # in the first epoch
        (6, STEPS),  # after its last batch
        (10, STEPS),  # in the second
        (10, STEPS | {"workers": 2}),
        (10, STEPS | {"sampler": partial(PKBatches, images_per_class=4)}),
        (10, STEPS | {"sampler": ClassBalancedBatches, "workers": 2}),
        (10, STEPS | {"sampler": HARD}),
        (12, EPOCHS | {"sampler": HARD, "workers": 2}),
        (12, EPOCHS),
        (12, VALIDATIONS),
        (8, VALIDATIONS | {"limit": 4}),  # an epoch that does not use all batches
    ],
)
def test_a_resumed_fit_continues_with_the_next_batch(store, tmp_path, step, when):
    """The batches after the checkpoint equal those of an uninterrupted fit."""
    whole = fit(store, tmp_path, **when)
    batches = when.get("limit", 6)
    assert [epoch for epoch, _ in whole] == [0] * batches + [1] * batches + [2] * batches
    assert len({images for _, images in whole}) == 3 * batches
    resumed = fit(store, tmp_path, resume=tmp_path / f"step={step}.ckpt", **when)
    assert resumed == whole[step:]


PART = """
import os
import sys
import numpy as np
from torch import distributed
from arcloop.data.loading.sampler import (
    ClassBalancedBatches, OrderedBatches, PKBatches, ShuffledBatches
)

rank, rendezvous = int(os.fork() == 0), sys.argv[1]
distributed.init_process_group(
    "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2
)
labels = np.arange(50) % 5
train = [
    ShuffledBatches(labels_N=labels, batch_size=4, world_size=2, seed=0),
    PKBatches(labels_N=labels, batch_size=4, world_size=2, seed=0, images_per_class=2),
    ClassBalancedBatches(labels_N=labels, batch_size=4, world_size=2, seed=0),
]
val = OrderedBatches(rows=21, batch_size=4)
train = [[rows.tolist() for rows in kind] for kind in train]
# print may write the end of the line on its own, after the line of the other process.
os.write(1, f"{rank};{train};{[rows.tolist() for rows in val]}\\n".encode())
distributed.destroy_process_group()
if rank == 0:
    assert os.wait()[1] == 0
"""


def test_two_processes_train_on_the_global_batches_of_one(tmp_path):
    command = [sys.executable, "-c", PART, tmp_path / "rendezvous"]
    printed = subprocess.check_output(command, text=True, timeout=120)
    parts = [line.split(";")[1:] for line in sorted(printed.splitlines())]
    train, val = ([ast.literal_eval(part[kind]) for part in parts] for kind in (0, 1))
    settings = {"labels_N": np.arange(50) % 5, "batch_size": 8, "world_size": 1, "seed": 0}
    alone = [
        ShuffledBatches(**settings),
        PKBatches(**settings, images_per_class=2),
        ClassBalancedBatches(**settings),
    ]
    for kind, whole in enumerate(alone):
        together = [
            sorted(one + other) for one, other in zip(*(t[kind] for t in train), strict=True)
        ]
        assert together == [rows.tolist() for rows in whole]
    assert [row for part in val for batch in part for row in batch] == list(range(21))
