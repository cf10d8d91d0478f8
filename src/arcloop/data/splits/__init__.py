"""Assignment of images and classes to the four splits."""

from __future__ import annotations

SPLITS = ("train", "val", "gallery", "query")
"""`train` is used for training, `val` for checkpoint selection, both for threshold calibration (see
`held_out`), `gallery` for the index, and `query` for evaluation only."""
