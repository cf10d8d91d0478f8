"""Run as `python sharded_processes.py FOLDER`: four processes over gloo, then three, two and one.

Each process writes its results to FOLDER/WORLD-RANK.pt for the tests. One interpreter
imports everything, and the processes are forks of it.
"""

import multiprocessing
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from arcloop.models import ShardedArcFace
from arcloop.training.optim import make_optimizer
from arcloop.training.sharded import (
    HEAD_WEIGHT,
    clip_gradients,
    coalesce,
    gather_head_state,
    shard_head_state,
)

WORLDS = (4, 3, 1)
N, INPUTS, D = 12, 6, 5
MANY, FEW = 23, 3  # classes: not divisible by the number of processes; less than processes
SCALE, MARGIN = 16.0, 0.4
SIZE_MARGIN = 0.5  # of the head with MANY classes; class i has i training images
LIMIT = 0.5


class Model(nn.Module):
    """A linear embedder and a head, named as in EmbeddingModule."""

    def __init__(self, num_classes, sample_rate):
        super().__init__()
        torch.manual_seed(7)
        self.embedder = nn.Linear(INPUTS, D, bias=False)
        self.embedder.backbone = nn.Identity()  # the optimizer reads it
        self.head = ShardedArcFace(
            embedding_dim=D, num_classes=num_classes, scale=SCALE, margin=MARGIN,
            easy_margin=False, sample_rate=sample_rate,
            size_margin=SIZE_MARGIN if num_classes == MANY else 0.0, size_power=0.25,
        )  # fmt: skip
        self.head.set_class_sizes(torch.arange(num_classes))
        self.head.initialize_shard()
        self._ddp_params_and_buffers_to_ignore = [HEAD_WEIGHT]

    def forward(self, inputs, labels):
        return self.head(self.embedder(inputs), labels)


def batch(num_classes, seed=0):
    """Inputs and labels of all processes."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N, INPUTS, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(num_classes, (N,), generator=generator)


def own(tensor, rank, world):
    return tensor[rank * len(tensor) // world : (rank + 1) * len(tensor) // world]


def prepare(num_classes, sample_rate, rank, world, seed=0, dtype=torch.float64):
    model = Model(num_classes, sample_rate).to(dtype)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    inputs, labels = (own(t, rank, world) for t in batch(num_classes, seed))
    return model, wrapped, inputs.to(dtype), labels


def gradients(num_classes, sample_rate, rank, world, *, step=0, dtype=torch.float64):
    model, wrapped, inputs, labels = prepare(
        num_classes, sample_rate, rank, world, seed=step, dtype=dtype
    )
    model.head.set_step(3, step)
    drawn = model.head.weight.detach().clone()
    loss = wrapped(inputs, labels)
    loss.backward()
    with torch.no_grad():
        without_margin = wrapped.eval()(inputs, labels)
    return {
        "classes": (model.head.classes.start, model.head.classes.stop),
        "weight": drawn,
        "loss": loss.detach(),
        "loss_without_margin": without_margin,
        "embedder_grad": model.embedder.weight.grad,
        "weight_grad": model.head.weight.grad,
    }


def narrow(rank, world):
    """Loss of bfloat16 features under autocast, and of the same numbers as float32."""
    model, _, inputs, labels = prepare(MANY, 1.0, rank, world, dtype=torch.float32)
    features = model.embedder(inputs).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.head(features, labels)
    return loss.detach(), model.head(features.float(), labels).detach()


def clipped(sample_rate, rank, world):
    model, wrapped, inputs, labels = prepare(MANY, sample_rate, rank, world)
    wrapped(inputs, labels).backward()
    model.head.weight.grad = coalesce(model.head.weight.grad)
    before = [g.clone() for g in (model.embedder.weight.grad, model.head.weight.grad.to_dense())]
    clip_gradients(optimizer_of(model, "sgd"), model.head, LIMIT, by_value=False)
    return before, [model.embedder.weight.grad, model.head.weight.grad.to_dense()]


def optimizer_of(model, name):
    factories = {
        "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
        "adamw": torch.optim.AdamW,
    }
    make = partial(
        make_optimizer,
        factory=factories[name],
        lr=0.05,
        weight_decay=0.01,
        head_lr=0.05,
        head_weight_decay=0.02,
        backbone_lr_factor=1.0,
        layer_decay=1.0,
    )
    return make(model.embedder, model.head)


def train(wrapped, model, optimizer, rank, world, steps):
    for step in steps:
        inputs, labels = (own(t, rank, world) for t in batch(MANY, step))
        model.head.set_step(3, step)
        optimizer.zero_grad()
        wrapped(inputs, labels).backward()
        optimizer.step()


def checkpoint_of(model, optimizer):
    checkpoint = {
        "state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]
    }  # fmt: skip
    gather_head_state(checkpoint, model.head)
    return checkpoint


def carried_over(name, sample_rate, folder, rank, world):
    """Train on four processes and save; on fewer, load, save, continue, and save again."""
    path = folder / f"{name}-{sample_rate}.ckpt"
    again = folder / f"again-{world}-{rank}.ckpt"
    model, wrapped, *_ = prepare(MANY, sample_rate, rank, world)
    optimizer = optimizer_of(model, name)
    if world == WORLDS[0]:
        train(wrapped, model, optimizer, rank, world, range(3))
        saved = stored(checkpoint_of(model, optimizer), path if rank == 0 else again)
    else:
        loaded = torch.load(path, weights_only=True)
        shard_head_state(loaded, model.head)
        model.load_state_dict(loaded["state_dict"])
        optimizer.load_state_dict(loaded["optimizer_states"][0])
        saved = stored(checkpoint_of(model, optimizer), again)
    train(wrapped, model, optimizer, rank, world, range(3, 5))
    return {"saved": saved, "gone_on": checkpoint_of(model, optimizer)}


def stored(checkpoint, path):
    torch.save(checkpoint, path)
    return torch.load(path, weights_only=True)


def find(folder, rank, world):
    found = {
        "many": gradients(MANY, 1.0, rank, world),
        "few": gradients(FEW, 1.0, rank, world),
        "float32": gradients(MANY, 1.0, rank, world, dtype=torch.float32),
        "sampled": [gradients(MANY, 0.4, rank, world, step=step) for step in (0, 1, 1)],
        "sampled few": gradients(FEW, 0.1, rank, world),
        "narrow": narrow(rank, world),
        "clipped": [clipped(rate, rank, world) for rate in (1.0, 0.3)],
        "carried over": {
            (name, rate): carried_over(name, rate, folder, rank, world)
            for name in ("sgd", "adamw")
            for rate in (1.0, 0.3)
        },
    }
    torch.save(found, folder / f"{world}-{rank}.pt")


def work(folder, rank):
    torch.set_num_threads(1)
    for world in WORLDS:
        if world == 1 and rank == 0:
            find(folder, 0, 1)  # without a process group
        elif world > 1 and rank < world:
            dist.init_process_group(
                "gloo", f"file://{folder}/group-{world}", rank=rank, world_size=world
            )
            find(folder, rank, world)
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
