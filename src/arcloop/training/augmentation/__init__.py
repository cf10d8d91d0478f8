"""Augmentation of batches on their device, after loading and before normalisation."""

from arcloop.training.augmentation.base import Augmentation, Chain, NoAugmentation
from arcloop.training.augmentation.color import ColorJitter, RandomErasing
from arcloop.training.augmentation.geometry import RandomAffine, RandomResizedCrop

__all__ = [
    "Augmentation", "Chain", "ColorJitter", "NoAugmentation", "RandomAffine", "RandomErasing",
    "RandomResizedCrop",
]  # fmt: skip
