"""Embedding with `model.pt` alone, and the faiss index."""

from arcloop.retrieval.auto_index import AutoIndex
from arcloop.retrieval.embed import Gallery, embed, load_model, write_gallery
from arcloop.retrieval.index import FaissIndex, open_index, write_index

__all__ = [
    "AutoIndex", "FaissIndex", "Gallery", "embed", "load_model", "open_index", "write_gallery",
    "write_index",
]  # fmt: skip
