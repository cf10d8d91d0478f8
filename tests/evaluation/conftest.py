"""Settings, embeddings with exact arithmetic, and a search by definition."""

import itertools

import hypothesis
import numpy as np
from hypothesis import strategies as st

from arcloop.config.evaluation import EvaluateSettings, GateSettings

# On a busy machine an example may take any time.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

# The 16 unit vectors of +-1/2: their cosines are multiples of 1/4, exact in any order of summation,
# and small sets of them are full of ties.
CORNERS = np.array(list(itertools.product((0.5, -0.5), repeat=4)), np.float32)


def settings(**changed):
    bounds = dict.fromkeys(GateSettings.__dataclass_fields__)
    values = {
        "batch_size": 4,
        "memory_mb": 1,
        "max_pairs": 10**9,
        "max_clustered": 100,
        "num_mistakes": 5,
        "num_projected": 30,
        "gallery": "data",
        "full_ranking": False,
        "exclude_same_group": False,
        "vote_k": None,
        "prototypes": False,
        "query_expansion": None,
        "expansion_k": 10,
        "expansion_alpha": 3.0,
        "rerank": None,
        "rerank_depth": 100,
        "rerank_k1": 20,
        "rerank_k2": 6,
        "rerank_original_weight": 0.3,
        "pairs": [],
        "pairs_flip": True,
        "gate": GateSettings(**bounds | {"use": "estimate", "loss_metric": "top1"}),
    }
    return EvaluateSettings(**values | changed)


@st.composite
def labelled_corners(draw, num_classes, rows):
    """Rows (float32 [N, 4], int64 [N]) of CORNERS with labels under num_classes."""
    count = draw(rows)
    pick = st.lists(st.integers(0, 15), min_size=count, max_size=count)
    label = st.lists(st.integers(0, num_classes - 1), min_size=count, max_size=count)
    return CORNERS[np.array(draw(pick), int)], np.array(draw(label), np.int64)


def cut(rows, labels, sizes):
    """Cut rows into chunks of the given sizes, again and again."""
    start = 0
    for size in itertools.cycle(sizes):
        if start >= len(labels):
            return
        yield rows[start : start + size], labels[start : start + size]
        start += size


def exact(gallery_rows):
    """Search: most similar first, of equal ones the lower row; -1 where there is none."""

    def search(queries, k):
        similarities = queries.astype(np.float64) @ gallery_rows.T.astype(np.float64)
        rows = np.full((len(queries), k), -1, np.int64)
        found = np.full((len(queries), k), -np.inf, np.float32)
        for query, values in enumerate(similarities):
            order = sorted(range(len(values)), key=lambda row: (-values[row], row))[:k]
            rows[query, : len(order)] = order
            found[query, : len(order)] = values[order]
        return found, rows

    return search
