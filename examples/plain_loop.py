"""Train embeddings in a plain PyTorch loop: the store, sampler, head and metrics of arcloop.

    python examples/plain_loop.py --epochs 5

No config is read, and neither Hydra nor Lightning is imported.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from arcloop.data import Store, SyntheticSource, prepare
from arcloop.heads import ArcFace
from arcloop.metrics import exact_neighbours, recall_at_k
from arcloop.samplers import PKBatches

EMBEDDING_DIM = 32


def open_store(folder: Path) -> Store:
    """Write a store of generated images once, and open it. ImageFolderSource reads your images."""
    source = SyntheticSource(
        name="synthetic", num_classes=20, image_size=16, channels=1, train=2000, val=200,
        gallery=400, query=200, split="stratified", val_classes=0.2, test_classes=0.4, noise=1.0,
        seed=0, shard_rows=4096, encoding="raw", jpeg_quality=95,
    )  # fmt: skip
    prepare(source, folder)
    return Store.open(folder)


def make_model(channels: int) -> nn.Module:
    """Map images [B, C, H, W] to embeddings [B, D], which are not normalised."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(EMBEDDING_DIM),
        nn.BatchNorm1d(EMBEDDING_DIM),
    )


def as_tensor(images_BHWC: np.ndarray) -> torch.Tensor:
    """Convert uint8 images to float32 [B, C, H, W] from -1 to 1."""
    return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def embed(model: nn.Module, store: Store, split: str) -> np.ndarray:
    """Embed a split: float32 [N, D], rows of norm 1."""
    model.eval()
    parts = [F.normalize(model(as_tensor(images))) for images, _ in store.batches(split, 512)]
    return torch.cat(parts).numpy()


def main() -> float:
    """Train, print Recall@1 on the query split, and return it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--store", type=Path, default=Path("stores/plain_loop"))
    options = parser.parse_args()

    torch.manual_seed(0)
    store = open_store(options.store)
    model = make_model(store.image_shape[2])
    head = ArcFace(
        embedding_dim=EMBEDDING_DIM, num_classes=store.num_train_classes, margin=0.3, scale=16.0,
        easy_margin=False, size_margin=0.0, size_power=0.25,
    )  # fmt: skip
    sampler = PKBatches(
        labels_N=store.labels("train"), batch_size=64, images_per_class=4, world_size=1, seed=0
    )
    model(as_tensor(store.gather("train", np.arange(2))[0]))  # sets the size of the lazy layer
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=2e-3)
    for epoch in range(options.epochs):
        model.train()
        sampler.set_epoch(epoch)
        for rows in sampler:
            images, labels = store.gather("train", rows)
            loss = head(model(as_tensor(images)), torch.from_numpy(labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    _, rows = exact_neighbours(embed(model, store, "query"), embed(model, store, "gallery"), k=1)
    neighbour_labels = store.labels("gallery")[rows]
    recall = float(recall_at_k(neighbour_labels, store.labels("query"), k=1).mean())
    print(f"Recall@1 {recall:.3f}")
    return recall


if __name__ == "__main__":
    main()
