"""The LightningModule, its callbacks, export, and the fit."""

from arcloop.training.callbacks import BuildIndex, Evaluate, ExportScripted
from arcloop.training.csv_logger import CsvLogger
from arcloop.training.freezing import FreezeBackbone
from arcloop.training.module import EmbeddingModule
from arcloop.training.recipe import NODES, Recipe
from arcloop.training.resume import LastCheckpoint
from arcloop.training.train import train
from arcloop.training.warmup import Warmup

__all__ = [
    "NODES", "BuildIndex", "CsvLogger", "EmbeddingModule", "Evaluate", "ExportScripted",
    "FreezeBackbone", "LastCheckpoint", "Recipe", "Warmup", "train",
]  # fmt: skip
