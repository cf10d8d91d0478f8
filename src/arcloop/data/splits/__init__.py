"""Assignment of images and classes to the four splits."""

from __future__ import annotations

SPLITS = ("train", "val", "gallery", "query")
"""`train` is used for training, `val` for checkpoint selection and threshold calibration, `gallery`
for the index, and `query` for evaluation only."""
