"""Types and ranges of the settings of the evaluation and of its gate."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated

from arcloop.config.restrictions import one_of
from arcloop.config.value_types import (
    MISSING,
    CheckedSettings,
    Fraction,
    FractionOrFractions,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)
from arcloop.errors import ConfigError

BOUNDS_ON_CHANGE = ("max_loss", "max_negative_flips", "max_class_loss")
"""Bounds of the gate on the change against the incumbent; the other bounds are on metrics."""


@dataclass(kw_only=True)
class GateSettings(CheckedSettings):
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
        min_top1: Lower bound on the top-1 accuracy.
        min_recall_at_5: Lower bound on recall@5.
        min_map_at_r: Lower bound on MAP@R.
        max_eer: Upper bound on the equal error rate of verification.
        min_class_accuracy: Lower bound on the top-1 accuracy of every class.
        min_pair_accuracy: Lower bound on the accuracy of verification on pairs of the query split.
        min_index_recall_at_10: Lower bound on recall@10 of the index, compared with exact search.
        min_pair_list_accuracy: Lower bound on the accuracy of every list of
            `EvaluateSettings.pairs`, or name of a list -> its bound.
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
    min_pair_list_accuracy: FractionOrFractions = MISSING
    min_index_recall_at_10: Fraction | None = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in BOUNDS_ON_CHANGE:
            if getattr(self, name) is not None and self.versus is None:
                raise ConfigError(
                    f"{name} is a bound on the change against another model",
                    where=f"evaluate.gate.{name}",
                    remedy="set evaluate.gate.versus to a run or a model store",
                )


@dataclass(kw_only=True)
class EvaluateSettings(CheckedSettings):
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
        pairs: Files with lists of pairs of images, .bin of InsightFace or CSV, on which
            verification is measured.
        pairs_flip: Add the embedding of the mirrored image to that of each image of a pair.
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
    pairs: list[str] = MISSING
    pairs_flip: bool = MISSING
    gate: GateSettings = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prototypes is True and self.exclude_same_group is True:
            raise ConfigError(
                "evaluate.prototypes=true and evaluate.exclude_same_group=true: the mean of a class"
                " cannot leave out the rows of each query's group",
                remedy="set one of them to false",
            )
        self._check_pairs()

    def _check_pairs(self) -> None:
        names, bounds = pair_list_names(self.pairs), self.gate.min_pair_list_accuracy
        unknown = [name for name in bounds if name not in names] if isinstance(bounds, dict) else []
        if unknown or (bounds is not None and not names):
            near = difflib.get_close_matches(unknown[0], names, n=1) if unknown else []
            raise ConfigError(
                f"evaluate.pairs {f'has no list {unknown[0]}' if unknown else 'is empty'}",
                where="evaluate.gate.min_pair_list_accuracy",
                remedy=f"did you mean {near[0]}?" if near
                else f"use the name of a list: {', '.join(names)}" if names
                else "add a list to evaluate.pairs, or remove the bound",
            )  # fmt: skip


def pair_list_names(files: Sequence[str]) -> list[str]:
    """Return the names of lists of pairs in metrics: those of the files without extension.

    >>> pair_list_names(["faces/lfw.bin", "my pairs.csv"])
    ['lfw', 'my_pairs']

    Raises:
        ConfigError: Two lists have the same name.
    """
    names = [re.sub(r"[^\w-]", "_", PurePath(file).stem) for file in files]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"evaluate.pairs has two lists with the name {name}", remedy="rename a file"
            )
    return names
