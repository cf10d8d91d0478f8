"""Evaluates one model in 1 to 3 processes, which are forks that communicate over gloo."""

import json
import multiprocessing
import os
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from arcloop.config.composition import build, compose_config
from arcloop.data import Store
from arcloop.distributed.process_group import current_process_group
from arcloop.errors import ArcloopError, DataError
from arcloop.evaluation.evaluate import evaluate
from arcloop.pipeline.steps import apply
from arcloop.retrieval.embed import embed_gallery
from arcloop.retrieval.index import build_index
from arcloop.runtime.searcher import save_model
from arcloop.training.val_metrics import val_metrics

STORE, RUN = Path("store"), Path("run")
SETTINGS = [
    "data=synthetic", "data.train=20", "data.val=41", "data.gallery=97", "data.query=71",
    "data.num_classes=5", "data.image_size=16", "data.noise=1.0", "backbone.widths=[8,8]",
    "embedder.embedding_dim=16", "embed.batch_size=8", "embed.shard_rows=20",
    "evaluate.batch_size=12", "evaluate.num_projected=40", "evaluate.max_pairs=4000",
    "evaluate.max_clustered=60", "evaluate.gate.versus=old.mar",
]  # fmt: skip
NAN = np.float32("nan")


def fork(world, work, name):
    """Run `work(group)` in forks, write results and errors to files, return the exit codes."""
    rendezvous = Path(f"{name}.rendezvous").absolute()

    def main(rank):
        if world > 1:
            dist.init_process_group(
                "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world
            )
        try:
            outcome = work(current_process_group())
        except ArcloopError as error:
            outcome = f"{type(error).__name__}: {error}"
        Path(f"{name}-{rank}.json").write_text(json.dumps(outcome))

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=main, args=(rank,)) for rank in range(world)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 60
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            sys.exit(f"{name}: a process does not finish")
    return [process.exitcode for process in processes]


def evaluate_model(config, folder):
    def work(group):
        store = Store.open(STORE).artifact.path
        gallery, index = folder / "gallery", folder / "index"
        settings = build(config, "embed")
        embed_gallery(RUN / "model.pt", store, gallery, settings, group=group)
        if group.rank == 0:
            build_index(
                RUN / "model.pt", store, gallery, index, index=build(config, "index"),
                calibration=build(config, "calibration"), embed_settings=settings,
            )  # fmt: skip
        found = evaluate(
            RUN, store, gallery, index, folder / "evaluation",
            settings=build(config, "evaluate"), embed_settings=settings, group=group,
        )  # fmt: skip
        return found.info["metrics"]

    return work


def compare_val(parts):
    """Val rows with many ties, unevenly distributed over the ranks."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randint(-1, 2, (sum(parts), 3), generator=random).float()
    rows = torch.nn.functional.normalize(rows + 0.1)
    labels = torch.randint(0, 4, (sum(parts),), generator=random)

    def work(group):
        start = sum(parts[: group.rank])
        own = slice(start, start + parts[group.rank])
        return val_metrics(rows[own], labels[own])["val_top1"]

    return work


def fail(group):
    def part():
        if group.rank == 1:
            raise DataError("image 7 is truncated")
        return 1

    return group.gather(part)


def fail_on_rank_0(group):
    return group.broadcast(lambda: [][0])


def exit_suddenly(group):
    group.barrier()  # the connections exist from here on
    if group.rank == 1:
        os._exit(9)
    return group.gather(lambda: 1)


def main():
    # Threads of OpenMP do not survive a fork: with several, the child processes would not end.
    torch.set_num_threads(1)
    config = compose_config(SETTINGS)
    apply("prepare", config, {}, STORE)
    RUN.mkdir()
    for seed, path in enumerate((RUN / "model.pt", Path("old.pt"))):
        torch.manual_seed(seed)
        embedder = build(config, "embedder")(build(config, "backbone")(in_channels=1),
                                             image_shape=(16, 16, 1)).eval()  # fmt: skip
        save_model(torch.jit.script(embedder), path, image_shape=(16, 16, 1), embedding_dim=16)
    np.savez("golden.npz", images=np.zeros((1, 16, 16, 1), np.uint8))
    with zipfile.ZipFile("old.mar", "w") as archive:  # all ranks evaluate it, and compare with it
        archive.write("old.pt", "model.pt")
        archive.write("golden.npz")
        archive.writestr("faiss_label.json", '{"threshold": 0.5}')
        archive.writestr("manifest.json", "{}")
    codes = {}
    for world in (1, 2, 3):
        codes[f"evaluated-{world}"] = fork(
            world, evaluate_model(config, Path(str(world))), f"evaluated-{world}"
        )
    for parts in ([40], [13, 27], [0, 29, 11]):
        name = f"val-{len(parts)}"
        codes[name] = fork(len(parts), compare_val(parts), name)
    for work in (fail, fail_on_rank_0, exit_suddenly):
        codes[work.__name__] = fork(2, work, work.__name__)
    Path("codes.json").write_text(json.dumps(codes))
