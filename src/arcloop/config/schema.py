"""Types and ranges of the settings of the steps; their values are in conf/.

Objects such as the source, backbone, head or optimizer are `_target_` nodes instead; their schema
is the signature of their constructor. The command line converts the DictConfig to these classes and
to plain containers; other packages receive no DictConfig.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from arcloop.config.evaluation import EvaluateSettings
from arcloop.config.restrictions import one_of
from arcloop.config.value_types import (
    MISSING,
    AutoCountOrShare,
    CheckedSettings,
    FolderName,
    Fraction,
    NearDuplicateBits,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Threads,
)
from arcloop.errors import ConfigError


@dataclass(kw_only=True)
class LoaderSettings(CheckedSettings):
    """Settings for loading batches in training and validation.

    Attributes:
        batch_size: Images per training batch and process.
        eval_batch_size: Images per validation batch and process.
        num_workers: Loader processes. 0 loads in the training process. This is fastest for small
            images, because a batch then needs only a few copies from the memory map.
        prefetch_factor: Batches that each worker loads ahead.
        on_device: Keep the whole train and val splits on the device, as uint8, so that no batch is
            copied there. They must fit into its memory.
    """

    batch_size: PositiveInt = MISSING
    eval_batch_size: PositiveInt = MISSING
    num_workers: NonNegativeInt = MISSING
    prefetch_factor: PositiveInt = MISSING
    on_device: bool = MISSING


@dataclass(kw_only=True)
class BackboneWeightsSettings(CheckedSettings):
    """Initial weights of the backbone.

    Attributes:
        file: A state dict (torch.save or .safetensors) or a checkpoint of arcloop; null for random
            weights.
        strict: Raise an error unless all tensors fit; false loads the tensors that fit and lists
            the others.
        pretrained: Use the weights that timm publishes for `backbone.model`, from the Hugging Face
            Hub or its cache, instead of `file`.
    """

    file: str | None = MISSING
    strict: bool = MISSING
    pretrained: bool = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrained and self.file is not None:
            raise ConfigError(
                f"backbone_weights.pretrained=true excludes backbone_weights.file={self.file}",
                remedy="remove one of them",
            )


@dataclass(kw_only=True)
class ValidationSettings(CheckedSettings):
    """Conditions that a store must satisfy before a model is trained on it.

    Attributes:
        min_images_per_class: Minimum images of a class in `train`; fewer are an error. `val` always
            requires at least 2, `gallery` at least 1.
        min_std: An image whose pixels (0..255) have a smaller standard deviation counts as empty.
        min_brightest: A smaller maximum (0..255) over the pixels of all images is an error. It is
            a sign of values that use a small part of their range, e.g. 12 of 16 bits.
        max_empty_fraction: A larger share of empty images in a split is an error; a smaller one
            gives a warning.
        max_imbalance: A larger ratio of the largest to the smallest class in `train` gives a
            warning.
        near_duplicate_bits: Image files that look alike give a warning if they have different
            classes or are in different splits. Pixels are compared if the hashes of two images
            differ in at most this many of 64 bits; null: none are compared.
        max_listed: Maximum findings of one check that are listed; others are only counted.
    """

    min_images_per_class: PositiveInt = MISSING
    min_std: NonNegativeFloat = MISSING
    min_brightest: NonNegativeInt = MISSING
    max_empty_fraction: Fraction = MISSING
    max_imbalance: NonNegativeFloat = MISSING
    near_duplicate_bits: NearDuplicateBits | None = MISSING
    max_listed: PositiveInt = MISSING


@dataclass(kw_only=True)
class EmbedSettings(CheckedSettings):
    """Settings for embedding images with model.pt.

    Attributes:
        batch_size: Images per batch.
        shard_rows: Rows per embeddings-*.npy file.
        device: "cpu", "cuda" or "auto" (cuda if available).
    """

    batch_size: PositiveInt = MISSING
    shard_rows: PositiveInt = MISSING
    device: str = MISSING


@dataclass(kw_only=True)
class CalibrationSettings(CheckedSettings):
    """Settings for calibrating the open-set threshold, without `query`.

    Attributes:
        far: False accept rate: maximum share of unknown images that are accepted.
        max_queries: Maximum number of images that serve as unknown queries. If there are more, they
            are sampled at random, with a fixed seed.
        held_out_classes: Classes that are left out of training, as a number or a share (0 to 1);
            their images of train and val are the unknown queries. "auto": a tenth if there are at
            least 100 classes, no `unknown`, and val has no class that train does not have, else
            none; null or 0: none. A finished run keeps the classes that it was trained without.
        unknown: Folder with images of unknown things, in any subfolders, that replace the images of
            classes as unknown queries; null for none.
    """

    far: Fraction = MISSING
    max_queries: PositiveInt = MISSING
    held_out_classes: AutoCountOrShare = MISSING
    unknown: str | None = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.far and self.far * self.max_queries < 1:
            raise ConfigError(
                f"calibration.max_queries={self.max_queries} images cannot measure a false accept"
                f" rate of calibration.far={self.far:g}",
                remedy=f"set calibration.max_queries={math.ceil(1 / self.far)} or more, or a larger"
                " calibration.far",
            )


@dataclass(kw_only=True)
class Config:
    """The composed config of all verbs: conf/config.yaml and one choice from each group.

    Attributes:
        name: Name of the run; by default the name of the data source.
        seed: Seed of all random numbers, in [0, 2^64).
        threads: Threads of torch, OpenMP, BLAS and faiss in each process. "auto": the number that
            the run records; for a new run `OMP_NUM_THREADS`, or the physical cores of this machine
            divided by the number of training processes.
        run_dir: Folder of the run; the same in every process.
        stores_dir: Folder of the stores. A store is named by its source and a hash.
        store_dir: Folder of the store of this run; null for a folder in `stores_dir`.
        append: Add new images of the source to the existing store, which keeps the split and label
            of each of its images; false prepares a new store.
        check: How images are compared with an existing store. "auto" compares the contents of files
            whose size and modification time are the same, but whose inode number or ctime differs;
            "full" compares the contents of all files.
        resume: "auto" continues an interrupted run of the same config; "true" continues from
            last.ckpt with any config; "false" starts from the beginning.
        overwrite: Replace a finished run of another config in `run_dir`.
        head_scale: Default of head.scale, for every head that has a scale. An experiment can set it
            whatever the head.
        compile: Train the backbone through torch.compile. The exported model is not compiled.
        force: Deploy a run that did not pass the gate; the manifest of the archive records this.
        monitor: Metric on `val` that selects the checkpoint and is the objective of a sweep.
        monitor_mode: "max" if a larger metric is better, else "min"; must fit the metric.
        origin: Set by the command line: the command, the given values, and the sweep of the run.
            A run records it, and its trackers show it.
    """

    name: FolderName = MISSING
    seed: Annotated[int, Field(ge=0, lt=2**64)] = MISSING
    threads: Threads = MISSING
    run_dir: str = MISSING
    stores_dir: str = MISSING
    store_dir: str | None = None
    append: bool = MISSING
    check: Annotated[str, one_of("auto", "full")] = MISSING
    resume: Annotated[str, one_of("auto", "true", "false")] = MISSING
    overwrite: bool = MISSING
    head_scale: PositiveFloat = MISSING
    compile: bool = MISSING
    force: bool = MISSING
    monitor: str = MISSING
    monitor_mode: Annotated[str, one_of("max", "min")] = MISSING
    origin: Any = None
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
