"""Training: the LightningModule, callbacks, optimizers, loggers, and the function `train`."""

from arcloop.training.callbacks.averaging import ExponentialAverage
from arcloop.training.callbacks.best_checkpoint import BestCheckpoint
from arcloop.training.callbacks.last_checkpoint import LastCheckpoint
from arcloop.training.callbacks.post_fit import BuildIndex, Evaluate, ExportScripted
from arcloop.training.callbacks.stages import FreezeBackbone, Warmup
from arcloop.training.callbacks.tensorboard import TensorBoardPages
from arcloop.training.fit import train
from arcloop.training.loggers import CsvLogger
from arcloop.training.module import EmbeddingModule
from arcloop.training.setup import NODES, TrainingSetup
from arcloop.training.tensorboard_logger import TensorBoardLogger
from arcloop.training.tracking import MlflowLogger, WandbLogger

__all__ = [
    "NODES", "BestCheckpoint", "BuildIndex", "CsvLogger", "EmbeddingModule", "Evaluate",
    "ExponentialAverage", "ExportScripted", "FreezeBackbone", "LastCheckpoint",
    "MlflowLogger", "TensorBoardLogger", "TensorBoardPages", "TrainingSetup", "WandbLogger",
    "Warmup", "train",
]  # fmt: skip
