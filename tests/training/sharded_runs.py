"""Trains complete runs, with a different number of processes in each epoch.

The processes are forks of one interpreter and have the environment that torchrun sets.
"""

import multiprocessing
import os
import shutil
import sys
from multiprocessing.connection import wait
from pathlib import Path

from tests.training.ports import free_port

from arcloop.artifacts import load
from arcloop.config.composition import compose_config
from arcloop.pipeline.steps import apply
from arcloop.pipeline.training import train_here

STORE = Path("store")
IMAGES = [
    "data=synthetic", "data.train=150", "data.val=40", "data.gallery=40", "data.query=30",
    "data.num_classes=7", "data.image_size=16", "data.noise=1.0",
]  # fmt: skip
COMMON = [
    *IMAGES, "backbone.widths=[8,8]", "embedder.embedding_dim=16", "augmentation=none",
    "scheduler=constant", "optimizer.lr=0.002", "optimizer.head_lr=0.05", "logger=csv",
    "trainer.log_every_n_steps=1",
]  # fmt: skip
SAMPLED = [
    "head=arcface_sharded", "head.sample_rate=0.5", "optimizer=adamw",
    "trainer.gradient_clip_val=0.5", "trainer.accumulate_grad_batches=2",
]  # fmt: skip
SMALL_BATCHES = ["embed.batch_size=6", "embed.shard_rows=16", "evaluate.batch_size=7"]
STATEFUL = [
    "head=adaface", "head.momentum=0.7", "callbacks=warmup", "callbacks.warmup.margin_steps=5",
    "callbacks.export=null", "callbacks.build_index=null", "callbacks.evaluate=null",
]  # fmt: skip
HARD = [  # the classes of a batch, and the margins, depend on the run
    "sampler=hard_classes", "sampler.images_per_class=12", "sampler.classes_per_group=2",
    "head.size_margin=0.4", "optimizer.lr=0.0005", "optimizer.head_lr=0.01",
    "callbacks.export=null", "callbacks.build_index=null", "callbacks.evaluate=null",
]  # fmt: skip
RUNS = {  # name -> overrides, processes of each epoch
    "dense": (["head=arcface", "callbacks=export_only"], (2, 1, 3)),
    "sharded": (["head=arcface_sharded", *SMALL_BATCHES], (2, 1, 3)),
    "stateful": (STATEFUL, (2, 1)),
    "stateful_one_process": (STATEFUL, (1, 1)),
    "hard": (["head=arcface_sharded", *HARD], (2, 2)),
    "hard_one_process": (["head=arcface", *HARD], (1, 1)),
    "sampled": ([*SAMPLED, "callbacks=export_only"], (2, 1)),
}
GLOBAL_BATCH = 48


def train_part(config, run_dir, overrides, environment):
    os.environ.update(environment)
    train_here(config, STORE, run_dir, overrides, pipeline_task=False)


def train_in(world, overrides, run_dir, common=COMMON):
    trainer = ["trainer=ddp_cpu", f"trainer.devices={world}"] if world > 1 else ["trainer=cpu"]
    overrides = [*common, *overrides, *trainer, f"loader.batch_size={GLOBAL_BATCH // world}"]
    config = compose_config([*overrides, f"run_dir={run_dir}"])
    port, processes = free_port(), []
    for rank in range(world):
        environment = {
            "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world,
            "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": "test",
        }  # fmt: skip
        environment = {k: str(v) for k, v in environment.items()} if world > 1 else {}
        processes.append(
            multiprocessing.get_context("fork").Process(
                target=train_part, args=(config, run_dir, overrides, environment)
            )
        )
    for process in processes:
        process.start()
    while alive := [process for process in processes if process.is_alive()]:
        wait([process.sentinel for process in alive])
        if any(process.exitcode for process in processes):
            for process in processes:  # they would wait for the failed process
                process.kill()
    if any(process.exitcode for process in processes):
        sys.exit(f"{run_dir} in {world} processes: {[p.exitcode for p in processes]}")


def main():
    apply("prepare", compose_config(IMAGES), {}, STORE)
    for name, (overrides, worlds) in RUNS.items():
        run_dir = Path(name)
        for epochs, world in enumerate(worlds, start=1):
            resume = ["resume=true"] if epochs > 1 else []
            train_in(world, [*overrides, *resume, f"trainer.max_epochs={epochs}"], run_dir)
            load(run_dir, "run")
            shutil.copy(run_dir / "checkpoints/last.ckpt", f"{name}-{epochs}.ckpt")
