"""Export of a trained model to TorchScript, ONNX and torch.export."""

from arcloop.export.formats import Format, TorchScript, extra_formats
from arcloop.export.onnx import OnnxFormat
from arcloop.export.run import export_run
from arcloop.export.torch_export import TorchExportFormat

__all__ = [
    "Format", "OnnxFormat", "TorchExportFormat", "TorchScript", "export_run", "extra_formats",
]  # fmt: skip
