"""The LightningModule, its callbacks, export, and the fit."""

from arcloop.export.export_run import export_run, some_beside
from arcloop.export.formats import Format, TorchScript
from arcloop.export.onnx import OnnxFormat
from arcloop.export.torch_export import TorchExportFormat
from arcloop.training.callbacks.freezing import FreezeBackbone
from arcloop.training.callbacks.post_fit import BuildIndex, Evaluate, ExportScripted
from arcloop.training.callbacks.tensorboard_pages import TensorBoardPages
from arcloop.training.callbacks.warmup import Warmup
from arcloop.training.fit import train
from arcloop.training.loggers.csv_logger import CsvLogger
from arcloop.training.loggers.mlflow_logger import MlflowLogger
from arcloop.training.loggers.wandb_logger import WandbLogger
from arcloop.training.module import EmbeddingModule
from arcloop.training.recipe import NODES, Recipe
from arcloop.training.resume import LastCheckpoint

__all__ = [
    "NODES", "BuildIndex", "CsvLogger", "EmbeddingModule", "Evaluate", "ExportScripted", "Format",
    "FreezeBackbone", "LastCheckpoint", "MlflowLogger", "OnnxFormat", "Recipe", "TensorBoardPages",
    "TorchExportFormat", "TorchScript", "WandbLogger", "Warmup", "export_run", "some_beside",
    "train",
]  # fmt: skip
