"""Trains with a frozen, then unfrozen backbone in one and two processes.

The timm backbone has its own batch-norm
class, which must be synchronised as well.
"""

from pathlib import Path

from tests.training.sharded_runs import IMAGES, STORE, train_in

from arcloop.config.composition import compose_config
from arcloop.models.backbones.timm_import import import_timm
from arcloop.pipeline.steps import apply

COMMON = [
    *IMAGES, "backbone=timm", "backbone.model=test_efficientnet", "embedder.embedding_dim=16",
    "augmentation=none", "scheduler=constant", "optimizer.lr=0.002", "optimizer.head_lr=0.02",
    "logger=csv", "trainer.log_every_n_steps=1", "trainer.max_epochs=3", "callbacks=freeze",
    "callbacks.freeze.epochs=2", "callbacks.build_index=null", "callbacks.evaluate=null",
]  # fmt: skip


def main():
    import_timm()
    apply("prepare", compose_config(IMAGES), {}, STORE)
    for world in (1, 2):
        train_in(world, [], Path(f"in-{world}"), common=COMMON)
