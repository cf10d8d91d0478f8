"""Train an embedding model as users of other libraries do, and print its results as JSON: `SPEC`.

The library of the specification is pml (pytorch-metric-learning) or oml (open-metric-learning).
Network, images, splits, augmentation, margin, scale, optimizer, schedule, batch size and number of
epochs are those of the run of arcloop; dataset, loader, loss and metrics are those of the library.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.network import Stages


def main() -> None:
    """Read the specification and print the result."""
    spec = json.loads(sys.argv[1])
    library = define_operators_of_torchvision()  # noqa: F841 - keeps them defined
    torch.manual_seed(spec["seed"])
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    frame = pd.read_csv(spec["files"])
    train = frame[frame["split"] == "train"].reset_index(drop=True)
    test = frame[frame["split"] == "validation"].reset_index(drop=True)
    network = Stages(spec["widths"], spec["image_size"], spec["embedding_dim"])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    work = {"pml": _PytorchMetricLearning, "oml": _OpenMetricLearning}[spec["library"]](spec)
    seconds = _train(network, work, train, spec)
    start = time.perf_counter()
    found = work.evaluate(network, test)
    images = len(train) // spec["batch_size"] * spec["batch_size"] * spec["epochs"]
    print(json.dumps({
        "train_s": seconds, "images_per_second": images / seconds,
        "evaluate_s": time.perf_counter() - start, "parameters": parameters, **found,
    }))  # fmt: skip


def _train(network: nn.Module, work: Any, train: pd.DataFrame, spec: dict[str, Any]) -> float:
    loader = DataLoader(
        work.train_dataset(train), batch_size=spec["batch_size"], shuffle=True, drop_last=True,
        num_workers=spec["workers"], persistent_workers=spec["workers"] > 0,
    )  # fmt: skip
    criterion = work.criterion(int(train["label"].max()) + 1)
    parameters = [*network.parameters(), *criterion.parameters()]
    optimizer = torch.optim.SGD(
        parameters, lr=spec["lr"], momentum=0.9, nesterov=True, weight_decay=spec["weight_decay"]
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, spec["lr"], epochs=spec["epochs"], steps_per_epoch=len(loader),
        pct_start=0.25, div_factor=10, final_div_factor=100, cycle_momentum=False,
    )  # fmt: skip
    network.train()
    start = time.perf_counter()
    for _ in range(spec["epochs"]):
        for batch in loader:
            images, labels = work.unpack(batch)
            loss = criterion(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return time.perf_counter() - start


def _transforms(spec: dict[str, Any], *, augment: bool) -> Any:
    from torchvision import transforms

    shift, largest = spec["shift"], 1 + spec["scale"]
    affine = transforms.RandomAffine(
        0, translate=(shift, shift), scale=(1 / largest, largest),
        interpolation=transforms.InterpolationMode.BILINEAR,
    )  # fmt: skip
    after = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    return transforms.Compose([affine, *after] if augment else after)


class _PytorchMetricLearning:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def train_dataset(self, frame: pd.DataFrame) -> Dataset[Any]:
        return _Images(frame, _transforms(self.spec, augment=True))

    def criterion(self, classes: int) -> nn.Module:
        from pytorch_metric_learning.losses import ArcFaceLoss

        degrees = math.degrees(self.spec["margin"])
        dim, scale = self.spec["embedding_dim"], self.spec["head_scale"]
        return ArcFaceLoss(classes, dim, margin=degrees, scale=scale)

    def unpack(self, batch: Any) -> tuple[Tensor, Tensor]:
        images, labels = batch
        return images, labels

    def evaluate(self, network: nn.Module, frame: pd.DataFrame) -> dict[str, float]:
        from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        tester = GlobalEmbeddingSpaceTester(dataloader_num_workers=0, batch_size=512)
        dataset = _Images(frame, _transforms(self.spec, augment=False))
        rows_ND, labels_N1 = tester.get_all_embeddings(dataset, network.eval())
        return _accuracy(AccuracyCalculator, rows_ND, labels_N1.squeeze(1))


class _OpenMetricLearning:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def train_dataset(self, frame: pd.DataFrame) -> Dataset[Any]:
        from oml.datasets import ImageLabeledDataset

        made: Dataset[Any] = ImageLabeledDataset(
            frame, transform=_transforms(self.spec, augment=True)
        )
        return made

    def criterion(self, classes: int) -> nn.Module:
        from oml.losses.arcface import ArcFaceLoss

        dim = self.spec["embedding_dim"]
        return ArcFaceLoss(dim, classes, m=self.spec["margin"], s=self.spec["head_scale"])

    def unpack(self, batch: Any) -> tuple[Tensor, Tensor]:
        return batch["input_tensors"], batch["labels"]

    def evaluate(self, network: nn.Module, frame: pd.DataFrame) -> dict[str, float]:
        from oml.datasets import ImageQueryGalleryLabeledDataset
        from oml.inference import inference
        from oml.metrics import calc_retrieval_metrics_rr
        from oml.retrieval import RetrievalResults
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        dataset = ImageQueryGalleryLabeledDataset(
            frame, transform=_transforms(self.spec, augment=False)
        )
        rows_ND = nn.functional.normalize(inference(network.eval(), dataset, batch_size=512))
        results = RetrievalResults.from_embeddings(rows_ND, dataset, n_items=10)
        found = calc_retrieval_metrics_rr(results, cmc_top_k=(1,))
        # OML's MAP@k divides by the number of hits found, so MAP@R is computed by PML.
        labels_N = torch.tensor(frame["label"].to_numpy())
        with contextlib.redirect_stdout(sys.stderr):
            map_at_r = _accuracy(AccuracyCalculator, rows_ND, labels_N)["map_at_r"]
        return {"top1": float(found["cmc"][1]), "map_at_r": map_at_r}


def _accuracy(calculator: Any, rows_ND: Tensor, labels_N: Tensor) -> dict[str, float]:
    wanted = ("precision_at_1", "mean_average_precision_at_r")
    made = calculator(include=wanted, k="max_bin_count", device=torch.device("cpu"))
    rows_ND = nn.functional.normalize(rows_ND)
    found = made.get_accuracy(rows_ND, labels_N)
    return {
        "top1": float(found["precision_at_1"]),
        "map_at_r": float(found["mean_average_precision_at_r"]),
    }


class _Images(Dataset[Any]):
    """Image files with their labels."""

    def __init__(self, frame: pd.DataFrame, transform: Any) -> None:
        self.paths, self.labels = frame["path"].tolist(), frame["label"].tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), self.labels[index]


def define_operators_of_torchvision() -> torch.library.Library:
    """Define two operators of detection, without which torchvision cannot be imported.

    The CPU build of torch and the build of torchvision for GPUs are not compatible.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


if __name__ == "__main__":
    main()
