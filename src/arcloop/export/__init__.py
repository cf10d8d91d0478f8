"""Export of a trained model to TorchScript, ONNX, torch.export and AOTInductor."""

from arcloop.export.compact import OnnxFp16Format, OnnxInt8Format
from arcloop.export.compiled import CompiledFormat
from arcloop.export.formats import (
    Format,
    OnnxFormat,
    TorchExportFormat,
    TorchScript,
    extra_formats,
)
from arcloop.export.run import export_run

__all__ = [
    "CompiledFormat", "Format", "OnnxFormat", "OnnxFp16Format", "OnnxInt8Format",
    "TorchExportFormat", "TorchScript", "export_run", "extra_formats",
]  # fmt: skip
