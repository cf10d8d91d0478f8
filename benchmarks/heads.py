"""The head alone: dense, sharded, and sharded with a tenth of the classes sampled.

The table shows the time of a training step and the peak memory of a process, in one process and in
several, with the ratio to the dense head. A step consists of the embedder (one linear layer of 512
dimensions), head, backward pass and optimizer, with a global batch of 64, under DDP if there are
several processes. With GPUs there is one process per GPU and a batch of 1024. An empty cell means
that the machine does not have enough memory.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from arcloop.config.composition import build, compose_config
from arcloop.models import ShardedArcFace
from arcloop.training.sharded import HEAD_WEIGHT
from benchmarks.measure import Section, Size

WAYS = {
    "dense": ["head=arcface"],
    "sharded": ["head=arcface_sharded"],
    "sampled 0.1": ["head=arcface_sharded", "head.sample_rate=0.1"],
}
D = 512
_FEWEST, _MOST, _SECONDS = 3, 50, 2.0
Result = dict[str, float]


TITLE = "Sharded classes"


def measure(size: Size) -> Section:
    """Measure one process, and one process per GPU, or two without GPUs."""
    devices = torch.cuda.device_count()
    classes = size.of((1_000,), (100_000,), (10_000, 100_000, 1_000_000))
    rows = []
    for processes in sorted({1, devices or 2}):
        for number in classes:
            results = {way: measure_head(number, way, processes) for way in WAYS}
            for way, result in results.items():
                rows.append(_row(processes, number, way, result, results["dense"]))
    return Section([], {"a training step of the head": rows})


def _row(
    processes: int, classes: int, way: str, result: Result | None, dense: Result | None
) -> dict[str, Any]:
    of_dense = {key: result[key] / dense[key] if result and dense else None
                for key in ("ms", "mib")}  # fmt: skip
    return {
        "processes": processes, "classes": classes, "head": way,
        "ms per step": result and result["ms"], "ratio of times": of_dense["ms"],
        "peak MiB per process": result and result["mib"], "ratio of memory": of_dense["mib"],
    }  # fmt: skip


def _batch(processes: int) -> int:
    """Return the batch size of one process; the global batch size is constant."""
    return (1024 if torch.cuda.is_available() else 64) // processes


def measure_head(classes: int, way: str, processes: int) -> Result | None:
    """Measure in new processes; None if the machine does not have enough memory."""
    if not torch.cuda.is_available() and _needed(classes, way, processes) > _available():
        return None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        **os.environ, "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": str((os.cpu_count() or 1) // processes or 1),
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.heads", "--rank", way, str(classes)],
            env={**common, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip
    texts = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"{way}, {classes} classes: {[p.returncode for p in started]}")
    results: list[Result] = [json.loads(text) for text in texts]
    return {name: max(result[name] for result in results) for name in ("ms", "mib")}


def _needed(classes: int, way: str, processes: int) -> float:
    """Return the bytes of all processes: weight, unit vectors, gradients and momentum."""
    copies = {"dense": 7 if processes == 1 else 8, "sharded": 7, "sampled 0.1": 3.5}[way]
    return copies * classes * D * 4 * (processes if way == "dense" else 1)


def _available() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith("MemAvailable")).split()[1])


def _of_this_process(field: str) -> float:
    """Return VmRSS, or its peak VmHWM, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


class _Model(nn.Module):
    def __init__(self, config: Any, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedder = nn.Sequential(OrderedDict(backbone=nn.Linear(D, D)))
        self.head = build(config, "head")(embedding_dim=D, num_classes=classes)
        if isinstance(self.head, ShardedArcFace):
            self.head.initialize_shard()
            self._ddp_params_and_buffers_to_ignore = [HEAD_WEIGHT]

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.head(self.embedder(inputs), labels)
        return loss


def _rank(way: str, classes: int) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=world)
    _steps(way, 1000, world, device, seconds=0)  # loads what is loaded at first use
    before = _of_this_process("VmRSS")
    milliseconds = _steps(way, classes, world, device, seconds=_SECONDS)
    peak = (
        torch.cuda.max_memory_allocated() / 2**20 if on_gpu else _of_this_process("VmHWM") - before
    )
    print(json.dumps({"ms": statistics.median(milliseconds), "mib": peak}))
    if world > 1:
        dist.destroy_process_group()


def _steps(
    way: str, classes: int, world: int, device: torch.device, *, seconds: float
) -> list[float]:
    """Return the milliseconds of each training step after the first."""
    config = compose_config(WAYS[way])
    model = _Model(config, classes).to(device)
    optimizer = build(config, "optimizer")(model.embedder, model.head)
    wrapped = DistributedDataParallel(model) if world > 1 else model
    inputs = torch.randn(_batch(world), D, device=device)
    milliseconds: list[float] = []
    steps = 1 + _FEWEST
    step = 0
    while step < steps:
        labels = torch.randint(classes, (len(inputs),), device=device)
        if isinstance(model.head, ShardedArcFace):
            model.head.set_step(0, step)
        start = time.perf_counter()
        optimizer.zero_grad()
        wrapped(inputs, labels).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        milliseconds.append(1000 * (time.perf_counter() - start))
        step += 1
        if step == 1:  # the same number on every rank
            slowest = torch.tensor(milliseconds[0] / 1000, device=device)
            if world > 1:
                dist.all_reduce(slowest, dist.ReduceOp.MAX)
            steps += min(_MOST - _FEWEST, int(seconds / slowest.item()))
    return milliseconds[1:]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        _rank(sys.argv[2], int(sys.argv[3]))
