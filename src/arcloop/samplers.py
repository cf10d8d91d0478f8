"""Batch samplers for any training loop: each yields the rows of a batch, int64 [B].

The rows are a function of the seed, the epoch (see `set_epoch`) and the rank of the process.
"""

from arcloop.data.loading.hard_classes import HardClassBatches
from arcloop.data.loading.sampler import (
    ClassBalancedBatches,
    EpochBatches,
    PKBatches,
    ShuffledBatches,
)

__all__ = [
    "ClassBalancedBatches", "EpochBatches", "HardClassBatches", "PKBatches", "ShuffledBatches",
]  # fmt: skip
