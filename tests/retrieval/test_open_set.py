"""The false accept rate of the calibrated threshold on digits that the model has never seen."""

from itertools import combinations

import numpy as np
import pytest
import torch
from tests.retrieval.conftest import write_gallery

from arcloop.config.composition import build, compose_config
from arcloop.config.schema import CalibrationSettings
from arcloop.data import EmbeddingDataModule, Store, prepare
from arcloop.retrieval import load_model
from arcloop.retrieval.calibration import HELD_OUT, TRAINED, calibrate, calibrate_threshold
from arcloop.runtime.searcher import save_model
from arcloop.training import NODES, TrainingSetup
from arcloop.training.setup import silence_lightning

FAR = 0.01
# The model of a block is trained without its four digits. A pair of these is unknown, and the other
# two are the held-out classes of the calibration. Every digit is in a block.
BLOCKS = [(0, 1, 4, 5), (1, 2, 3, 7), (1, 6, 8, 9), (2, 4, 7, 9), (3, 4, 6, 8)]

CONFIG = [
    "data=mnist", "data.val=1000", "data.gallery=2000", "embedder.embedding_dim=16",
    "backbone.widths=[8,16,16]", "backbone.depth=1", "augmentation=none", "head.scale=16",
    "loader.batch_size=128", "trainer.max_steps=100", "+trainer.limit_val_batches=0",
    "+trainer.enable_checkpointing=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnist") / "store"
    prepare(build(compose_config(CONFIG), "data"), folder)
    return Store.open(folder)


def train_without(digits, setup, store, path):
    names = [store.classes[digit] for digit in digits]
    datamodule = EmbeddingDataModule(
        store.artifact.path, setup.loader, setup.sampler, 0, lambda _: names
    )
    with silence_lightning():
        module = setup.make_module(store.image_shape, datamodule.num_classes)
        setup.make_trainer().fit(module, datamodule=datamodule)
    scripted = torch.jit.script(module.embedder.eval())
    save_model(scripted, path, image_shape=store.image_shape, embedding_dim=16)
    return load_model(path, "cpu")


def embedded(model, store, split, per_digit):
    """The first images of each digit."""
    labels = store.labels(split)
    rows = np.sort(np.concatenate([np.flatnonzero(labels == d)[:per_digit] for d in range(10)]))
    images, labels = store.gather(split, rows)
    return model.embed(images), labels


def real_rates(store, folder):
    """By protocol, the share of accepted images of each pair of unknown digits."""
    settings = CalibrationSettings(far=FAR, max_queries=2000, held_out_classes=2, unknown=None)
    rates, seen = {HELD_OUT: [], TRAINED: []}, set()
    config = compose_config(CONFIG)
    config.callbacks, config.logger = {}, {}
    nodes = {name: build(config, name) for name in NODES}
    setup = TrainingSetup(**nodes, seed=0, monitor="val_top1")
    for number, block in enumerate(BLOCKS):
        model = train_without(block, setup, store, folder / f"{number}.pt")
        gallery, labels = embedded(model, store, "gallery", 200)
        queries, query_labels = embedded(model, store, "query", 300)
        val, val_labels = embedded(model, store, "val", 100)
        trained = ~np.isin(val_labels, block)
        for pair in sorted(set(combinations(block, 2)) - seen):
            seen.add(pair)
            known = ~np.isin(labels, pair)
            kept = gallery[known]
            best = (queries[np.isin(query_labels, pair)] @ kept.T).max(axis=1)
            of_pair = write_gallery(folder / str(pair), [(kept, labels[known])], *kept.shape)
            others = [store.classes[digit] for digit in block if digit not in pair]
            rows = [(val[trained], val_labels[trained])]
            for found in (
                calibrate(model, store, of_pair, settings, 512, others),
                calibrate_threshold(rows, of_pair.chunks, FAR, TRAINED),
            ):
                rates[found.protocol].append(np.mean(best >= found.threshold))
    assert len(seen) == 28
    return rates


def test_the_real_false_accept_rate_of_two_unknown_digits(store, tmp_path):
    rates = real_rates(store, tmp_path)
    print({name: np.quantile(of, [0, 0.1, 0.5, 0.9, 1]).round(4) for name, of in rates.items()})
    assert FAR / 3 < np.median(rates[HELD_OUT]) < FAR * 3
    assert np.mean(rates[HELD_OUT]) < np.mean(rates[TRAINED])
