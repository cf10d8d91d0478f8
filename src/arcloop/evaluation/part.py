"""The part of an evaluation that each process computes."""

from __future__ import annotations

import math
from dataclasses import replace

from arcloop.config.schema import EmbedSettings
from arcloop.data import Store
from arcloop.display.terminal import track
from arcloop.distributed.process_group import ProcessGroup
from arcloop.evaluation.evaluator import EvaluationState, update_evaluation
from arcloop.evaluation.pairs import measure_pair_lists
from arcloop.evaluation.setup import EvaluationSetup
from arcloop.retrieval import embed
from arcloop.retrieval.embed import Embeddings, Labels, counted
from arcloop.runtime.searcher import Model


def evaluate_part(
    model: Model,
    images: Store,
    label_C: Labels,
    setup: EvaluationSetup,
    embed_settings: EmbedSettings,
    group: ProcessGroup,
) -> EvaluationState:
    """Evaluate the queries and the lists of pairs of this process.

    Raises:
        ConfigError, DataError: A list of pairs cannot be read.
    """
    # The rounding of matrix products depends on the batch. With these boundaries, every batch
    # has the same rows for any number of processes.
    batch_size = embed_settings.batch_size
    part = group.shard(setup.num_queries, math.lcm(setup.settings.batch_size, batch_size))
    with track("evaluate", len(part)) as advance:
        quality: list[Embeddings] = []
        batches = images.batches("query", batch_size, part)
        embedded = counted(embed(model, batches, quality), advance)
        state = update_evaluation(((e, label_C[n]) for e, n in embedded), setup, part)
    rates = measure_pair_lists(model, setup.settings, batch_size, group)
    return replace(state, quality=quality, pair_rates=rates)
