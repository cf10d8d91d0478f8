"""Images and labels: sources, splits, the sharded store, its validation, and batch loading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arcloop.data.prepare import changes_since, prepare, store_key
from arcloop.data.sources import Source
from arcloop.data.sources.csv_list import CsvSource
from arcloop.data.sources.idx import IdxSource
from arcloop.data.sources.image_folder import ImageFolderSource
from arcloop.data.sources.pictures import PictureSource
from arcloop.data.sources.recordio import RecordIoSource
from arcloop.data.sources.synthetic import SyntheticSource
from arcloop.data.splits import SPLITS
from arcloop.data.store import Store
from arcloop.data.validation import validate

if TYPE_CHECKING:
    from arcloop.data.loading.datamodule import EmbeddingDataModule
    from arcloop.data.loading.sampler import EpochBatches

__all__ = [
    "SPLITS", "CsvSource", "EmbeddingDataModule", "EpochBatches", "IdxSource", "ImageFolderSource",
    "PictureSource", "RecordIoSource", "Source", "Store", "SyntheticSource", "changes_since",
    "prepare", "store_key", "validate",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import classes that need torch on first access; preparing a store imports no torch."""
    if name == "EmbeddingDataModule":
        from arcloop.data.loading.datamodule import EmbeddingDataModule

        return EmbeddingDataModule
    if name == "EpochBatches":
        from arcloop.data.loading.sampler import EpochBatches

        return EpochBatches
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
