"""The LightningModule, its callbacks, export, and the fit."""

from arcloop.training.callbacks import BuildIndex, Evaluate, ExportScripted
from arcloop.training.csv_logger import CsvLogger
from arcloop.training.exports import export_run, some_beside
from arcloop.training.formats import Format, TorchScript
from arcloop.training.freezing import FreezeBackbone
from arcloop.training.mlflow_logger import MlflowLogger
from arcloop.training.module import EmbeddingModule
from arcloop.training.onnx_format import OnnxFormat
from arcloop.training.recipe import NODES, Recipe
from arcloop.training.resume import LastCheckpoint
from arcloop.training.tensorboard import TensorBoardPages
from arcloop.training.torch_export_format import TorchExportFormat
from arcloop.training.train import train
from arcloop.training.wandb_logger import WandbLogger
from arcloop.training.warmup import Warmup

__all__ = [
    "NODES", "BuildIndex", "CsvLogger", "EmbeddingModule", "Evaluate", "ExportScripted", "Format",
    "FreezeBackbone", "LastCheckpoint", "MlflowLogger", "OnnxFormat", "Recipe", "TensorBoardPages",
    "TorchExportFormat", "TorchScript", "WandbLogger", "Warmup", "export_run", "some_beside",
    "train",
]  # fmt: skip
