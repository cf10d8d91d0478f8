"""Exports of a trained model: TorchScript, ONNX and torch.export."""

from arcloop.export.export_run import export_run, some_beside
from arcloop.export.formats import Format, TorchScript
from arcloop.export.onnx import OnnxFormat
from arcloop.export.torch_export import TorchExportFormat

__all__ = ["Format", "OnnxFormat", "TorchExportFormat", "TorchScript", "export_run", "some_beside"]
