"""Embedding with model.pt, the faiss index, exact search and the open-set threshold."""

from arcloop.retrieval.auto_index import AutoIndex
from arcloop.retrieval.calibration import calibrate_threshold
from arcloop.retrieval.embed import (
    Gallery,
    embed,
    embed_gallery,
    load_model,
    require_same_model,
)
from arcloop.retrieval.exact_search import exact_neighbours
from arcloop.retrieval.index import FaissIndex, build_index, open_index, write_index

__all__ = [
    "AutoIndex", "FaissIndex", "Gallery", "build_index", "calibrate_threshold", "embed",
    "embed_gallery", "exact_neighbours", "load_model", "open_index", "require_same_model",
    "write_index",
]  # fmt: skip
