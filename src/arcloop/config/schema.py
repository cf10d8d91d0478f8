"""Types and ranges of the settings of the steps; their values are in conf/.

Objects such as the source, backbone, head or optimizer are `_target_` nodes instead; their schema
is the signature of their constructor. The command line converts the DictConfig to these classes and
to plain containers; other packages receive no DictConfig.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from omegaconf import MISSING
from pydantic import Field

from arcloop.config.value_types import (
    AutoCountOrShare,
    FolderName,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Threads,
    check_fields,
    one_of,
)
from arcloop.errors import ConfigError


class _Checked:
    """Checks every field against its annotation on construction.

    Raises:
        ConfigError: A value does not fit its annotation; the message lists every such value.
    """

    def __post_init__(self) -> None:
        check_fields(self, type(self).__name__)


@dataclass(kw_only=True)
class LoaderSettings(_Checked):
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
class BackboneWeightsSettings(_Checked):
    """Initial weights of the backbone.

    Attributes:
        file: A state dict (torch.save or .safetensors) or a checkpoint of arcloop; null for random
            weights.
        strict: Raise an error unless all tensors fit; false loads the tensors that fit and lists
            the others.
    """

    file: str | None = MISSING
    strict: bool = MISSING


@dataclass(kw_only=True)
class ValidationSettings(_Checked):
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
        max_listed: Maximum findings of one check that are listed; others are only counted.
    """

    min_images_per_class: PositiveInt = MISSING
    min_std: NonNegativeFloat = MISSING
    min_brightest: NonNegativeInt = MISSING
    max_empty_fraction: Fraction = MISSING
    max_imbalance: NonNegativeFloat = MISSING
    max_listed: PositiveInt = MISSING


@dataclass(kw_only=True)
class EmbedSettings(_Checked):
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
class CalibrationSettings(_Checked):
    """Settings for calibrating the open-set threshold, without `query`.

    Attributes:
        far: False accept rate: maximum share of unknown images that are accepted.
        max_queries: Maximum number of images that serve as unknown queries. If there are more, they
            are sampled at random, with a fixed seed.
        held_out_classes: Classes that are left out of training, as a number or a share (0 to 1);
            their images of train and val are the unknown queries. "auto": a tenth if there are at
            least 100 classes and no `unknown`, else none; null or 0: none. A store whose val
            classes are not in train holds out none. A finished run keeps the classes that it was
            trained without.
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
class GateSettings(_Checked):
    """Bounds on the metrics of a model that may be deployed; null means no bound.

    `min_` is a lower and `max_` an upper bound. A missing or non-finite metric does not pass.

    Attributes:
        use: "estimate" compares the metrics with their bounds; "interval" compares the lower ends
            of their 95% confidence intervals with `min_` bounds and the upper ends with `max_`
            bounds. A metric without an interval is compared itself.
        versus: Folder of a run with an evaluation, archive, or folder of a model store, whose live
            version is taken: the incumbent, with which the model is compared on the same queries;
            null compares with nothing.
        loss_metric: Metric of `max_loss`.
        max_loss: The model must not be worse than the incumbent by more than this, with 95%
            confidence: the lower end of the interval of the difference is not below `-max_loss`.
        max_negative_flips: Upper bound on the share of queries that the incumbent answers
            correctly and the model does not.
        max_class_loss: Upper bound on the decrease of the top-1 accuracy of any class.
    """

    use: Annotated[str, one_of("estimate", "interval")] = MISSING
    versus: str | None = MISSING
    loss_metric: Annotated[
        str,
        one_of(
            "top1", "recall_at_5", "recall_at_10", "precision_at_5", "precision_at_10", "map_at_r",
            "r_precision", "mrr", "ndcg_at_10", "mean_class_accuracy",
        ),
    ] = MISSING  # fmt: skip
    max_loss: Fraction | None = MISSING
    max_negative_flips: Fraction | None = MISSING
    max_class_loss: Fraction | None = MISSING

    min_top1: Fraction | None = MISSING
    min_recall_at_5: Fraction | None = MISSING
    min_map_at_r: Fraction | None = MISSING
    max_eer: Fraction | None = MISSING
    min_class_accuracy: Fraction | None = MISSING
    min_pair_accuracy: Fraction | None = MISSING
    min_index_recall_at_10: Fraction | None = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_loss", "max_negative_flips", "max_class_loss"):
            if getattr(self, name) is not None and self.versus is None:
                raise ConfigError(
                    f"{name} is a bound on the change against another model",
                    where=f"evaluate.gate.{name}",
                    remedy="set evaluate.gate.versus to a run or a model store",
                )


@dataclass(kw_only=True)
class EvaluateSettings(_Checked):
    """Settings for evaluating the model and its index.

    Attributes:
        batch_size: Queries per search.
        memory_mb: Upper bound in MiB on the working memory of the comparison, in addition to the
            embeddings of queries and gallery.
        max_pairs: Maximum number of pairs for the ROC curve and the histogram. If there are more,
            queries are sampled.
        max_clustered: Maximum number of queries for k-means clustering and for the ten folds of
            pairs. A larger split is sampled.
        num_mistakes: Number of the worst mistakes shown in the report.
        num_projected: Points of the 2-D projection.
        gallery: If `arcloop evaluate` is given data other than those of the run: "data" compares
            their queries with their gallery, "run" with the gallery of the run.
        full_ranking: Also compute mAP and mINP, which need the rank of every row of a class.
        exclude_same_group: Gallery rows of the query's group are no neighbours and no pairs.
        vote_k: Also measure answers by a vote of this many neighbours; null: off.
        prototypes: Also measure answers by the mean embedding of each class.
        query_expansion: Also rank with the weighted sum of a query and its neighbours: "average"
            gives all the weight 1, "alpha" the power `expansion_alpha` of the cosine; null: off.
        expansion_k: Number of neighbours in the sum.
        expansion_alpha: Exponent of the weights.
        rerank: Also measure the first neighbours re-ranked by "k_reciprocal" encoding; null: off.
        rerank_depth: Number of neighbours that are re-ranked.
        rerank_k1: Size of the k-reciprocal neighbourhoods.
        rerank_k2: Number of nearest encodings that are averaged.
        rerank_original_weight: Weight of the original distance, lambda in the paper.
        gate: Bounds that decide whether the model may be deployed.
    """

    batch_size: PositiveInt = MISSING
    memory_mb: PositiveInt = MISSING
    max_pairs: PositiveInt = MISSING
    max_clustered: NonNegativeInt = MISSING
    num_mistakes: NonNegativeInt = MISSING
    num_projected: NonNegativeInt = MISSING
    gallery: Annotated[str, one_of("data", "run")] = MISSING
    full_ranking: bool = MISSING
    exclude_same_group: bool = MISSING
    vote_k: PositiveInt | None = MISSING
    prototypes: bool = MISSING
    query_expansion: Annotated[str, one_of("average", "alpha")] | None = MISSING
    expansion_k: PositiveInt = MISSING
    expansion_alpha: NonNegativeFloat = MISSING
    rerank: Annotated[str, one_of("k_reciprocal")] | None = MISSING
    rerank_depth: PositiveInt = MISSING
    rerank_k1: PositiveInt = MISSING
    rerank_k2: PositiveInt = MISSING
    rerank_original_weight: Fraction = MISSING
    gate: GateSettings = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prototypes is True and self.exclude_same_group is True:
            raise ConfigError(
                "evaluate.prototypes=true and evaluate.exclude_same_group=true: the mean of a class"
                " cannot leave out the rows of each query's group",
                remedy="set one of them to false",
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
