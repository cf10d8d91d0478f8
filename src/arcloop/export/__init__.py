"""Export of a trained model to TorchScript, ONNX and torch.export."""

from arcloop.export.formats import (
    Format,
    OnnxFormat,
    TorchExportFormat,
    TorchScript,
    extra_formats,
)
from arcloop.export.run import export_run

__all__ = [
    "Format", "OnnxFormat", "TorchExportFormat", "TorchScript", "export_run", "extra_formats",
]  # fmt: skip
