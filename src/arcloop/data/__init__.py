"""Images and labels: sources, the sharded store, its validation, and loading for training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arcloop.data.append import changes_since
from arcloop.data.csv_source import CsvSource
from arcloop.data.idx import IdxSource
from arcloop.data.image_folder import ImageFolderSource
from arcloop.data.prepare import prepare, store_key
from arcloop.data.source import SPLITS, Source
from arcloop.data.store import Store
from arcloop.data.synthetic import SyntheticSource
from arcloop.data.validate import validate

if TYPE_CHECKING:
    from arcloop.data.datamodule import EmbeddingDataModule
    from arcloop.data.sampler import EpochBatches

__all__ = [
    "SPLITS", "CsvSource", "EmbeddingDataModule", "EpochBatches", "IdxSource", "ImageFolderSource",
    "Source", "Store", "SyntheticSource", "changes_since", "prepare", "store_key", "validate",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import torch only for those who train; preparing a store does without."""
    if name == "EmbeddingDataModule":
        from arcloop.data.datamodule import EmbeddingDataModule

        return EmbeddingDataModule
    if name == "EpochBatches":
        from arcloop.data.sampler import EpochBatches

        return EpochBatches
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
