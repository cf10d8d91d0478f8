"""Assignment of images and classes to the four splits."""

from __future__ import annotations

SPLITS = ("train", "val", "gallery", "query")
"""`train` fits the embedding, `val` selects the checkpoint and calibrates thresholds, `gallery`
fills the index, and `query` is for evaluation only."""
