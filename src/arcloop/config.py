"""Typed settings of the steps. Their values live in conf/; their types and ranges live here.

Library-like things (source, backbone, head, optimizer, ...) are `_target_` nodes instead: there the
constructor is the schema. Nothing below the command line sees a DictConfig.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, fields

from omegaconf import MISSING

from arcloop.errors import ConfigError
from arcloop.quantities import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    complaint,
)


class _Checked:
    """Checks every field against its annotation when the settings are made."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self), include_extras=True)
        faults = [
            f"{field.name}={value!r} {fault}"
            for field in fields(self)  # type: ignore[arg-type]
            if (fault := complaint(value := getattr(self, field.name), hints[field.name]))
        ]
        if faults:
            raise ConfigError("; ".join(faults), where=type(self).__name__)


@dataclass(kw_only=True)
class LoaderSettings(_Checked):
    """How training batches are read.

    Attributes:
        batch_size: Images in a batch, per process.
        eval_batch_size: Images in a batch where no gradient is kept.
        num_workers: Loader processes; 0 reads in the training process, which is fastest for
            small images, since a batch is gathered with a few copies from the memory map.
        prefetch_factor: Batches each worker keeps ready.
    """

    batch_size: PositiveInt = MISSING
    eval_batch_size: PositiveInt = MISSING
    num_workers: NonNegativeInt = MISSING
    prefetch_factor: PositiveInt = MISSING


@dataclass(kw_only=True)
class ValidationSettings(_Checked):
    """What a store must satisfy before anything is trained on it.

    Attributes:
        min_images_per_class: Fewer images of a class than this in `train` is an error; in other
            splits, fewer than 2 in `val` or 1 in `gallery` is one.
        min_std: A smaller standard deviation of an image's pixels (0..255) means it is constant
            or near-empty, an error from `max_empty_fraction` of a split upwards, else a warning.
        max_empty_fraction: Share of such images that is still a warning.
        max_imbalance: Largest over smallest class in `train` beyond which a warning is given.
        max_listed: Faults of one kind that are listed in full; the rest is counted.
    """

    min_images_per_class: PositiveInt = MISSING
    min_std: NonNegativeFloat = MISSING
    max_empty_fraction: Fraction = MISSING
    max_imbalance: NonNegativeFloat = MISSING
    max_listed: PositiveInt = MISSING


@dataclass(kw_only=True)
class EmbedSettings(_Checked):
    """How images are embedded through model.pt.

    Attributes:
        batch_size: Images in a batch.
        shard_rows: Rows in an embeddings-*.npy.
        device: "cpu", "cuda" or "auto" (cuda when there).
    """

    batch_size: PositiveInt = MISSING
    shard_rows: PositiveInt = MISSING
    device: str = MISSING


@dataclass(kw_only=True)
class GateSettings(_Checked):
    """Least (min_) and largest (max_) values with which a model may be deployed; null is no bound.

    A metric that is missing or not finite never passes.
    """

    min_top1: Fraction | None = MISSING
    min_recall_at_5: Fraction | None = MISSING
    min_map_at_r: Fraction | None = MISSING
    max_eer: Fraction | None = MISSING
    min_class_accuracy: Fraction | None = MISSING


@dataclass(kw_only=True)
class EvaluateSettings(_Checked):
    """How the model and its index are judged.

    Attributes:
        batch_size: Queries searched at a time.
        far: Share of comparisons of different classes that the open-set threshold lets through.
            It is calibrated on val against the gallery, never on query.
        memory_mb: Bound on one block of the similarity matrix, in MiB.
        max_pairs: Pairs compared for ROC and histogram; more than that are sampled by query.
        num_mistakes: Worst mistakes shown on the page.
        num_projected: Points of the 2-D projection.
        gate: What decides on deployment.
    """

    batch_size: PositiveInt = MISSING
    far: Fraction = MISSING
    memory_mb: PositiveInt = MISSING
    max_pairs: PositiveInt = MISSING
    num_mistakes: NonNegativeInt = MISSING
    num_projected: NonNegativeInt = MISSING
    gate: GateSettings = MISSING
