"""A model whose embeddings are the pixels, and galleries on disk."""

import numpy as np
import pytest
import torch

from arcloop.artifacts.writer import write_artifact
from arcloop.retrieval import Gallery, embed, load_model
from arcloop.retrieval.embed import write_shards
from arcloop.runtime.searcher import save_model


class Pixels(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(x.float().flatten(1) + 1)


def pixel_model(path, height, width):
    """Write and load a model that embeds grey images of this size."""
    save_model(
        torch.jit.script(Pixels().eval()), path, image_shape=(height, width, 1),
        embedding_dim=height * width,
    )  # fmt: skip
    return load_model(path, "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return pixel_model(tmp_path_factory.mktemp("m") / "model.pt", 4, 8)


def images(rows, seed=0):
    """Sixty clusters, the same for every seed."""
    centres = np.random.default_rng(99).integers(0, 216, (60, 4, 8, 1))
    random = np.random.default_rng(seed)
    noise = random.integers(0, 40, (rows, 4, 8, 1))
    return (centres[random.integers(0, 60, rows)] + noise).astype(np.uint8)


def batches(array, size):
    labels = np.arange(len(array)) % 5
    for start in range(0, len(array), size):
        yield array[start : start + size], labels[start : start + size]


def gallery(model, folder, array, *, batch=64, shard_rows=100):
    """Embed images of five classes and write them as a gallery."""
    embedded = embed(model, batches(array, batch))
    return write_gallery(folder, embedded, len(array), 32, shard_rows, model.sha256)


def write_gallery(folder, batches, rows, dim, shard_rows=1000, model_sha256="0" * 64):
    """Write batches of embeddings and labels as a gallery."""
    with write_artifact(folder, "gallery", config={}, parents={"model": model_sha256}) as writer:
        write_shards(writer.path, batches, shard_rows)
        writer.count = rows
        writer.info |= {"rows": rows, "embedding_dim": dim}
    return Gallery(folder)
