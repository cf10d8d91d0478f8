"""index=auto: selects an index by gallery size, memory limit and measured recall.

The choice does not depend on measured times, so the same gallery and settings give the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import faiss
import numpy as np
from pydantic import Field

from arcloop.config.value_types import Fraction, PositiveFloat, PositiveInt, check_fields
from arcloop.display.terminal import print_line, track
from arcloop.retrieval.duplicates import find_equal_rows
from arcloop.retrieval.embed import Gallery, counted
from arcloop.retrieval.exact_search import exact_neighbours
from arcloop.retrieval.index import FaissIndex, sample_rows
from arcloop.retrieval.shortened import build_shortened, require_shorter

_TUNE_SHARE = 10  # at most 1/10 of the rows is excluded from training and used to measure recall
_MAX_REFINED = 64  # maximum number of candidates per answer that are compared exactly
_MAX_CELLS_SHARE = 8  # at most 1/8 of the cells is searched; with more, exact search is as fast
_TIES = 32  # exact neighbours per query; each row tied with the nearest is correct


@dataclass(frozen=True, kw_only=True)
class AutoIndex:
    """Selects an index by the number of rows, the required recall and a memory limit.

    Small galleries are searched exactly. Larger ones use an inverted file with 4-bit product
    quantization (André et al., arXiv 1812.09162), and the best candidates are refined with 32, 16
    or 8 bits per number. The number of cells and candidates is tuned on gallery rows that are
    excluded from training: the share of them whose nearest neighbour is found must exceed `recall`
    by two standard errors. HNSW is not used, because its graph depends on the order in
    which threads add rows.

    Args:
        recall: Required share of queries whose exact nearest row is found.
        memory_mb: Maximum size of the index in MiB; None: no limit.
        flat_rows: Maximum rows of a gallery that is searched exactly, within `memory_mb`.
        train_rows: Number of evenly spaced gallery rows for training.
        tune_queries: Number of evenly spaced gallery rows for measuring recall.
        dim: Number of coordinates that are compared, the first ones of the embeddings; None: all.
    """

    recall: Fraction
    memory_mb: PositiveFloat | None
    flat_rows: PositiveInt
    train_rows: PositiveInt
    tune_queries: PositiveInt
    dim: Annotated[int, Field(ge=2)] | None

    def __post_init__(self) -> None:
        check_fields(self, "index")

    def check(self, dim: int, rows: int | None = None) -> None:
        """Check that `self.dim` is possible for embeddings of size `dim`; see `FaissIndex.check`.

        Raises:
            ConfigError: The embeddings are too short.
        """
        if self.dim is not None:
            require_shorter(self.dim, dim)

    def build(self, gallery: Gallery) -> tuple[Any, dict[str, Any]]:
        """Select, build and tune an index.

        Returns:
            The faiss index and its description: "factory", "search", "why" and "recall_at_1", and
            "tune_queries" if the recall was measured, "dim" if embeddings are shortened.

        Raises:
            ConfigError: The gallery is too small to train the only index that fits in `memory_mb`.
        """
        if self.dim is not None:
            return build_shortened(self, gallery, self.dim)
        exact = 4.0 * gallery.embedding_dim
        if gallery.rows <= self.flat_rows and self._fits(gallery, exact):
            return self._flat(gallery, f"an exact search of {gallery.rows:,} rows is fast enough")
        # Rows used for training are found more easily, so recall is measured on other rows.
        tuning = _TuningQueries(
            gallery, min(self.tune_queries, max(1, gallery.rows // _TUNE_SHARE))
        )
        builder = FaissIndex(
            factory=self._factory(gallery), search={}, train_rows=self.train_rows, dim=None
        )
        index, description = builder.build(gallery, not_trained=tuning.rows)
        search, recall, reached = tuning.tune(index, self.recall)
        if not reached and self._fits(gallery, exact):
            return self._flat(gallery, f"no approximate search reaches a recall of {self.recall}")
        limit = "" if self.memory_mb is None else f", the best within {self.memory_mb:g} MiB"
        missed = "" if reached else f", which may be below the required {self.recall:.2%}"
        why = f"{gallery.rows:,} rows{limit}; finds {recall:.2%} of nearest rows{missed}"
        description |= {
            "search": search, "recall_at_1": recall, "tune_queries": len(tuning.rows), "why": why
        }  # fmt: skip
        print_line(f"index: {description['factory']} {search}: {why}")
        return index, description

    def _flat(self, gallery: Gallery, why: str) -> tuple[Any, dict[str, Any]]:
        builder = FaissIndex(factory="Flat", search={}, train_rows=self.train_rows, dim=None)
        index, description = builder.build(gallery)
        print_line(f"index: Flat: {why}")
        return index, description | {"recall_at_1": 1.0, "why": why}

    def _fits(self, gallery: Gallery, bytes_per_vector: float) -> bool:
        if self.memory_mb is None:
            return True
        return gallery.rows * bytes_per_vector <= self.memory_mb * 2**20

    def _factory(self, gallery: Gallery) -> str:
        """Return the most exact index type that fits in `memory_mb`; the smallest if none fits."""
        dim = gallery.embedding_dim
        parts = dim // 2 if dim % 2 == 0 else dim  # a 4-bit code for every two numbers
        cells = f"IVF{{nlist}},PQ{parts}x4fs"
        # Bytes of the code and the row number, and a share of the centroids.
        code = parts / 2 + 8 + 4 * dim * 4 / math.sqrt(gallery.rows)
        refined = {"RFlat": 4 * dim, "Refine(SQfp16)": 2 * dim, "Refine(SQ8)": dim}
        fitting = (name for name, size in refined.items() if self._fits(gallery, code + size))
        return next((f"{cells},{name}" for name in fitting), cells)


class _TuningQueries:
    """Sampled gallery rows with their exact nearest other rows."""

    def __init__(self, gallery: Gallery, queries: int) -> None:
        self.rows, self._queries_QD = sample_rows(gallery, queries)
        self._equal_rows = find_equal_rows(gallery.chunks)
        with track("search exactly", gallery.rows, "vectors") as advance:
            sims, rows = exact_neighbours(
                self._queries_QD, lambda: counted(gallery.chunks(), advance), _TIES, self.rows,
                self._equal_rows.rows,
            )  # fmt: skip
        # Every row that is as similar as the nearest row counts as correct.
        self._right = np.where(sims >= sims[:, :1] - 1e-6, rows, -1)

    def tune(self, index: Any, required: float) -> tuple[dict[str, int], float, bool]:
        """Set the smallest search parameters of an index that reach a recall.

        Returns:
            The parameters, their recall, and whether it reaches `required`. If no parameters do,
            the largest are set.
        """
        refines = isinstance(faiss.downcast_index(index), faiss.IndexRefine)
        refined = {"k_factor_rf": _MAX_REFINED} if refines else {}
        for cells in _cells(index):
            search = {"nprobe": cells, **refined}
            recall = self._recall(index, search)
            if reached := self._reaches(recall, required):
                break
        while reached and search.get("k_factor_rf", 0) > 2:
            smaller = search | {"k_factor_rf": search["k_factor_rf"] // 2}
            smaller_recall = self._recall(index, smaller)
            if not self._reaches(smaller_recall, required):
                break
            search, recall = smaller, smaller_recall
        _set_parameters(index, search)
        return search, recall, reached

    def _recall(self, index: Any, search: dict[str, int]) -> float:
        """Return the share of tuning rows whose nearest other row the index finds."""
        # Two answers are requested, because one is the query itself. The number of candidates per
        # answer is halved, so that the total equals that of a search for one answer.
        halved = {"k_factor_rf": search["k_factor_rf"] // 2} if "k_factor_rf" in search else {}
        _set_parameters(index, search | halved)
        _, found = index.search(self._queries_QD, 2)
        found = self._equal_rows.prefer_lowest(found)
        itself = found[:, 0] == self.rows
        answers = np.where(itself, found[:, 1], found[:, 0])
        return float(((answers[:, None] == self._right) & (answers[:, None] >= 0)).any(1).mean())

    def _reaches(self, recall: float, required: float) -> bool:
        """Return whether a measured recall exceeds the required one by two standard errors."""
        error = math.sqrt(max(recall * (1 - recall), 0.0) / len(self.rows))
        return recall - 2 * error >= required


def _cells(index: Any) -> list[int]:
    """Return the numbers of cells to try, ascending by a factor of about 1.4."""
    most = max(1, faiss.extract_index_ivf(index).nlist // _MAX_CELLS_SHARE)
    steps = sorted({n for p in range(most.bit_length()) for n in (2**p, 3 * 2**p // 2)})
    return [n for n in steps if n <= most]


def _set_parameters(index: Any, search: dict[str, int]) -> None:
    space = faiss.ParameterSpace()
    for name, value in search.items():
        space.set_index_parameter(index, name, value)
