"""Run as `python heads_in_processes.py FOLDER`: heads in two processes over gloo, then in one.

Each process writes its results to FOLDER/WORLD-RANK.pt for the tests.
"""

import multiprocessing
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from pytorch_metric_learning import losses, miners
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from arcloop.models import (
    AdaCos,
    AdaFace,
    ArcFace,
    CurricularFace,
    MagFace,
    PairLoss,
    SubCenterArcFace,
)
from arcloop.training.optim import make_optimizer

WORLDS = (2, 1)
N, INPUTS, D, C, STEPS = 12, 6, 5, 7, 4
HEADS = {
    "adacos": partial(AdaCos, dynamic=True),
    "curricularface": partial(CurricularFace, scale=16.0, margin=0.4, momentum=0.7),
    "adaface": partial(AdaFace, scale=16.0, margin=0.4, concentration=0.5, momentum=0.7),
    "magface": partial(
        MagFace, scale=16.0, low_margin=0.3, high_margin=0.9, low_length=0.5, high_length=3.0,
        length_weight=3.0, easy_margin=False,
    ),
    "sub-center": partial(
        SubCenterArcFace, scale=16.0, margin=0.4, easy_margin=False, sub_centers=2,
        size_margin=0.0, size_power=0.25,
    ),
    "pair loss": partial(
        PairLoss, loss=losses.MultiSimilarityLoss(), miner=miners.MultiSimilarityMiner(epsilon=0.5),
        memory_size=0,
    ),
    "triplets": partial(
        PairLoss, loss=losses.TripletMarginLoss(margin=0.3), miner=None, memory_size=0
    ),
    "memory": partial(
        PairLoss, loss=losses.ContrastiveLoss(pos_margin=0, neg_margin=1), miner=None,
        memory_size=20,
    ),
    "by size": partial(
        ArcFace, scale=16.0, margin=0.1, easy_margin=False, size_margin=0.4, size_power=0.5
    ),
    "proxies": partial(
        PairLoss, loss=partial(losses.ProxyAnchorLoss, alpha=8.0), miner=None, memory_size=0
    ),
}  # fmt: skip


class Model(nn.Module):
    def __init__(self, name):
        super().__init__()
        torch.manual_seed(7)
        self.embedder = nn.Linear(INPUTS, D, bias=False)
        self.embedder.backbone = nn.Identity()  # the optimizer reads it
        self.head = HEADS[name](embedding_dim=D, num_classes=C)
        self.head.set_class_sizes(torch.arange(C))

    def forward(self, inputs, labels):
        return self.head(self.embedder(inputs), labels)


def trained(name, rank, world):
    model = Model(name).double()
    wrapped = DistributedDataParallel(model) if world > 1 else model
    make = partial(
        make_optimizer,
        factory=partial(torch.optim.SGD, momentum=0.9), lr=0.05, weight_decay=0.01, head_lr=0.05,
        head_weight_decay=0.02, backbone_lr_factor=1.0, layer_decay=1.0,
    )  # fmt: skip
    optimizer = make(model.embedder, model.head)
    found = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(N, INPUTS, generator=generator, dtype=torch.float64)
        labels = torch.randint(C, (N,), generator=generator)
        part = slice(rank * N // world, (rank + 1) * N // world)
        optimizer.zero_grad()
        loss = wrapped(inputs[part], labels[part])
        loss.backward()
        optimizer.step()
        found.append(
            {"loss": loss.detach(), **{k: v.clone() for k, v in model.state_dict().items()}}
        )
    return found


def work(folder, rank):
    torch.set_num_threads(1)
    for world in WORLDS:
        if rank >= world:
            continue
        if world > 1:
            dist.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=world)
        found = {name: trained(name, rank, world) for name in HEADS}
        torch.save(found, folder / f"{world}-{rank}.pt")
        if world > 1:
            dist.destroy_process_group()


def main():
    folder = Path(sys.argv[1])
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(folder, rank)) for rank in range(WORLDS[0])]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in processes))


if __name__ == "__main__":
    main()
