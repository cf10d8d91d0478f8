"""Train a model of transformers with ArcFace in the Trainer of Hugging Face.

    pip install transformers accelerate
    python examples/hf_trainer.py --epochs 3

The head is a layer of the model: its loss is what the Trainer minimises, and its class vectors are
trained and saved with the model. The metrics are computed from embeddings, not from logits.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from plain_loop import as_tensor, open_store
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import ResNetConfig, ResNetModel, Trainer, TrainingArguments
from transformers.trainer_utils import EvalPrediction

import arcloop
from arcloop.metrics import evaluate_retrieval


class Split(Dataset):
    """The images of a split of a store, in the format of the Trainer."""

    def __init__(self, store: arcloop.data.Store, split: str) -> None:
        self.store, self.split = store, split

    def __len__(self) -> int:
        return self.store.rows(self.split)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor | int]:
        images, labels = self.store.gather(self.split, np.array([row]))
        return {"pixel_values": as_tensor(images)[0], "labels": int(labels[0])}


class ArcFaceModel(nn.Module):
    """A vision model of transformers whose pooled output is the embedding."""

    def __init__(self, backbone: nn.Module, embedding_dim: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = arcloop.heads.create(
            "arcface", embedding_dim=embedding_dim, num_classes=num_classes, scale=16.0
        )

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss, with a margin in training mode, and embeddings [B, D] of norm 1."""
        features = self.backbone(pixel_values).pooler_output.flatten(1)
        return {"loss": self.head(features, labels), "embeddings": F.normalize(features)}


def retrieval_metrics(found: EvalPrediction) -> dict[str, float]:
    """Compare each image with all other images of the split."""
    rows = found.predictions, found.label_ids
    metrics = evaluate_retrieval(rows, rows, leave_one_out=True)
    return {name: metrics[name] for name in ("recall_at_1", "map_at_r")}


def main() -> float:
    """Train, print the metrics on val, and return Recall@1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--store", type=Path, default=Path("stores/plain_loop"))
    options = parser.parse_args()

    torch.manual_seed(0)
    store = open_store(options.store)
    config = ResNetConfig(
        num_channels=store.image_shape[2], embedding_size=16, hidden_sizes=[32, 64],
        depths=[1, 1], layer_type="basic",
    )  # fmt: skip
    model = ArcFaceModel(ResNetModel(config), 64, store.num_train_classes)
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder, num_train_epochs=options.epochs, per_device_train_batch_size=64,
                per_device_eval_batch_size=256, learning_rate=5e-3, report_to=[],
                save_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
                dataloader_pin_memory=torch.cuda.is_available(),
            ),
            train_dataset=Split(store, "train"),
            eval_dataset=Split(store, "val"),
            compute_metrics=retrieval_metrics,
        )  # fmt: skip
        trainer.train()
        metrics = trainer.evaluate()
    recall = float(metrics["eval_recall_at_1"])
    print(f"Recall@1 {recall:.3f}, MAP@R {metrics['eval_map_at_r']:.3f}")
    return recall


if __name__ == "__main__":
    main()
