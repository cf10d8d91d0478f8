"""Evaluation of the queries of a store with one model: its setup, and the part of a process."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from arcloop.config.evaluation import EvaluateSettings
from arcloop.config.schema import EmbedSettings
from arcloop.data import Store
from arcloop.display.terminal import track
from arcloop.distributed.process_group import ProcessGroup
from arcloop.evaluation.evaluator import (
    EvaluationSetup,
    EvaluationState,
    Search,
    update_evaluation,
)
from arcloop.retrieval import Gallery, embed
from arcloop.retrieval.embed import counted
from arcloop.retrieval.exclusion import require_groups
from arcloop.runtime.searcher import Model


def make_setup(
    images: Store,
    gallery_images: Store,
    embeddings: Gallery,
    search_index: Search,
    settings: EvaluateSettings,
    threshold: float,
    held_out: frozenset[str] = frozenset(),
) -> tuple[EvaluationSetup, npt.NDArray[np.int64]]:
    """Return the setup of the evaluation, and the label of each class of `images` in it."""
    # Classes that only the queries have get the last labels.
    classes = list(dict.fromkeys([*gallery_images.classes, *images.classes]))
    position = {name: label for label, name in enumerate(classes)}
    num_queries = images.rows("query")
    leave_one_out = images.leave_one_out and gallery_images is images
    setup = EvaluationSetup(
        gallery=embeddings.chunks,
        gallery_labels=embeddings.labels,
        search=search_index,
        classes=classes,
        settings=settings,
        threshold=threshold,
        num_queries=num_queries,
        own_rows=np.arange(num_queries) if leave_one_out else None,
        groups=images.groups("query"),
        held_out=held_out,
        gallery_groups=(
            require_groups(images, gallery_images) if settings.exclude_same_group else None
        ),
    )
    return setup, np.array([position[name] for name in images.classes], np.int64)


def evaluate_part(
    model: Model,
    images: Store,
    label_C: npt.NDArray[np.int64],
    setup: EvaluationSetup,
    embed_settings: EmbedSettings,
    group: ProcessGroup,
) -> EvaluationState:
    """Evaluate the queries of this process."""
    # The rounding of matrix products depends on the batch. With these boundaries, every batch
    # has the same rows for any number of processes.
    batch_size = embed_settings.batch_size
    part = group.shard(setup.num_queries, math.lcm(setup.settings.batch_size, batch_size))
    with track("evaluate", len(part)) as advance:
        quality: list[npt.NDArray[np.float32]] = []
        batches = images.batches("query", batch_size, part)
        embedded = counted(embed(model, batches, quality), advance)
        state = update_evaluation(((e, label_C[n]) for e, n in embedded), setup, part)
        return replace(state, quality=quality)
