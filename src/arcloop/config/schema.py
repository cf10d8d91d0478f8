"""Typed settings of the steps. Their values live in conf/; their types and ranges live here.

Library-like things (source, backbone, head, optimizer, ...) are `_target_` nodes instead: there the
constructor is the schema. Nothing below the command line sees a DictConfig.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

from omegaconf import MISSING

from arcloop.config.value_types import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    complaint,
)
from arcloop.errors import ConfigError


class _Checked:
    """Checks every field against its annotation when the settings are made."""

    def __post_init__(self) -> None:
        found = list(setting_faults(type(self), vars(self), type(self).__name__))
        if found:
            raise ConfigError("; ".join(found), remedy="change the values")


def setting_faults(settings: type, values: Mapping[str, Any], key: str) -> Iterator[str]:
    """Yield what is wrong with values meant for a dataclass of settings, nested ones included.

    Args:
        settings: The dataclass.
        values: Field -> plain value.
        key: Where they are in the config, for the message.
    """
    hints = typing.get_type_hints(settings, include_extras=True)
    for name, value in values.items():
        if is_dataclass(hints.get(name)) and isinstance(value, Mapping):
            yield from setting_faults(hints[name], value, f"{key}.{name}")
        elif fault := complaint(value, hints.get(name)):
            yield f"{key}.{name}={value!r} {fault}"


@dataclass(kw_only=True)
class LoaderSettings(_Checked):
    """How training batches are read.

    Attributes:
        batch_size: Images in a batch, per process.
        eval_batch_size: Images in a batch where no gradient is kept.
        num_workers: Loader processes; 0 reads in the training process, which is fastest for
            small images, since a batch is gathered with a few copies from the memory map.
        prefetch_factor: Batches each worker keeps ready.
        on_device: Keep the whole train and val splits on the device, as uint8, so that no batch is
            copied there; for data that fits.
    """

    batch_size: PositiveInt = MISSING
    eval_batch_size: PositiveInt = MISSING
    num_workers: NonNegativeInt = MISSING
    prefetch_factor: PositiveInt = MISSING
    on_device: bool = MISSING


@dataclass(kw_only=True)
class BackboneWeightsSettings(_Checked):
    """Weights that the backbone starts from.

    Attributes:
        file: A state dict (torch.save or .safetensors), or a checkpoint of arcloop; null: random.
        strict: Refuse a file unless all of it fits; false: take what fits and say what does not.
    """

    file: str | None = MISSING
    strict: bool = MISSING


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
class CalibrationSettings(_Checked):
    """How the open-set threshold is chosen: on val against the gallery, never on query.

    Attributes:
        far: Share of val images whose best match of another class may reach the threshold.
        max_queries: Val images used; more than that are sampled evenly.
    """

    far: Fraction = MISSING
    max_queries: PositiveInt = MISSING


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
    min_pair_accuracy: Fraction | None = MISSING
    min_index_recall_at_10: Fraction | None = MISSING


@dataclass(kw_only=True)
class EvaluateSettings(_Checked):
    """How the model and its index are judged.

    Attributes:
        batch_size: Queries searched at a time.
        memory_mb: Bound on what comparing holds beside queries and gallery, in MiB.
        max_pairs: Pairs compared for ROC and histogram; more than that are sampled by query.
        max_clustered: Queries clustered by k-means, and paired in ten folds; more are sampled.
        num_mistakes: Worst mistakes shown on the page.
        num_projected: Points of the 2-D projection.
        gate: What decides on deployment.
    """

    batch_size: PositiveInt = MISSING
    memory_mb: PositiveInt = MISSING
    max_pairs: PositiveInt = MISSING
    max_clustered: NonNegativeInt = MISSING
    num_mistakes: NonNegativeInt = MISSING
    num_projected: NonNegativeInt = MISSING
    gate: GateSettings = MISSING


@dataclass(kw_only=True)
class Config:
    """The one composed config of every verb: conf/config.yaml and a choice from each group.

    Attributes:
        name: Names the run; by default that of the data.
        seed: Source of every random number.
        run_dir: Where the run is written; the same in every process.
        stores_dir: Where stores are kept, each in a folder named by data and content.
        store_dir: A store at a place of one's own; null: in `stores_dir`.
        append: Where the source has new images, add them to the store that is there, which keeps
            the split and the label of every image it holds; false: a store is prepared anew.
        resume: "auto": go on with a run of this config that was interrupted; "true": go on from
            last.ckpt, whatever the config; "false": start again.
        overwrite: Replace a finished run of another config in `run_dir`.
        compile: Train the backbone through torch.compile; the eager one is what is scripted.
        force: Deploy a run whose gate did not pass; the archive's manifest says so.
        monitor: Metric of val that selects the checkpoint and is a sweep's objective.
        monitor_mode: Whether more ("max") or less ("min") of it is better.
    """

    name: str = MISSING
    seed: int = MISSING
    run_dir: str = MISSING
    stores_dir: str = MISSING
    store_dir: str | None = None
    append: bool = MISSING
    resume: str = MISSING
    overwrite: bool = MISSING
    compile: bool = MISSING
    force: bool = MISSING
    monitor: str = MISSING
    monitor_mode: str = MISSING
    data: Any = MISSING
    loader: LoaderSettings = MISSING
    sampler: Any = MISSING
    augmentation: Any = MISSING
    backbone: Any = MISSING
    backbone_weights: BackboneWeightsSettings = MISSING
    embedder: Any = MISSING
    head: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING
    callbacks: Any = MISSING
    export: Any = MISSING
    index: Any = MISSING
    deploy: Any = MISSING
    experiment: Any = None
    cluster: Any = None
    notify: Any = None
    sweep: Any = None
    launcher: Any = None
    validation: ValidationSettings = MISSING
    embed: EmbedSettings = MISSING
    calibration: CalibrationSettings = MISSING
    evaluate: EvaluateSettings = MISSING
