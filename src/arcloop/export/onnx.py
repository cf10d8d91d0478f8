"""Export to model.onnx for ONNX Runtime, TensorRT, OpenVINO and other ONNX runtimes."""

from __future__ import annotations

import importlib.metadata
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from arcloop.artifacts.atomic import write_bytes
from arcloop.config.targets import require_extra
from arcloop.config.value_types import PositiveInt, check_fields
from arcloop.errors import ConfigError
from arcloop.export.formats import (
    Embeddings,
    Format,
    Images,
    example_images,
    ignore_warnings,
    to_channels_first,
)  # fmt: skip
from arcloop.models import Embedder

_INPUT, _OUTPUT = "images", "embeddings"
_METADATA_KEY = "arcloop.json"
_MIN_OPSET = 11  # torch cannot export a dynamic batch size to a lower opset
_MAX_OPSET = 20  # highest opset of torch's TorchScript-based exporter
_DEPRECATION_WARNINGS = (
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed. Please remove usage of this function",
)


@dataclass(frozen=True, kw_only=True)
class OnnxFormat(Format):
    """Exports to ONNX with torch's TorchScript-based exporter; embeds with ONNX Runtime.

    The newer exporter, which is based on torch.export, requires onnxscript and writes local file
    paths into the file, so that the bytes differ between machines.

    Attributes:
        opset: Version of the ONNX operator set; the runtime that serves the file must support it.
    """

    opset: PositiveInt
    file: ClassVar[str] = "model.onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")

    def __post_init__(self) -> None:
        check_fields(self, "export.onnx")

    def check_available(self) -> None:
        require_extra("onnx", *self.packages, where="export=onnx")
        lowest, highest = opset_range()
        if not lowest <= self.opset <= highest:
            raise ConfigError(
                f"export.onnx.opset={self.opset}: torch {torch.__version__} and onnx"
                f" {importlib.metadata.version('onnx')} support opsets {lowest} to {highest}",
                remedy=f"choose export.onnx.opset from {lowest} to {highest}",
            )

    def write(self, embedder: Embedder, path: Path) -> None:
        import onnx

        content = io.BytesIO()
        try:
            with ignore_warnings(_DEPRECATION_WARNINGS):
                torch.onnx.export(
                    embedder,
                    (example_images(embedder),),
                    content,  # type: ignore[arg-type]
                    dynamo=False,
                    opset_version=self.opset,
                    input_names=[_INPUT],
                    output_names=[_OUTPUT],
                    dynamic_axes={_INPUT: {0: "batch"}, _OUTPUT: {0: "batch"}},
                )
            model = onnx.load_from_string(content.getvalue())
            onnx.checker.check_model(model, full_check=True)
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, onnx.checker.ValidationError,
                onnx.shape_inference.InferenceError) as cause:  # fmt: skip
            first_sentence = re.split(r"(?<=[^0-9])\. |\n", str(cause).strip(), maxsplit=1)[0]
            raise ConfigError(
                f"the network cannot be exported to ONNX opset {self.opset}: {first_sentence}",
                where="export=onnx",
                remedy=f"choose a higher export.onnx.opset, up to {opset_range()[1]}, another"
                " backbone, or export=torch_export",
            ) from cause
        metadata = {
            "image_shape": list(embedder.image_shape),
            "embedding_dim": embedder.embedding_dim,
        }
        model.metadata_props.add(key=_METADATA_KEY, value=json.dumps(metadata))
        write_bytes(path, model.SerializeToString(deterministic=True))

    def embed(self, path: Path, images_NHWC: Images) -> Embeddings:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        embeddings: Embeddings
        (embeddings,) = session.run([_OUTPUT], {_INPUT: to_channels_first(images_NHWC)})
        return embeddings


def opset_range() -> tuple[int, int]:
    """Return the lowest and the highest opset that torch and the installed onnx can write."""
    import onnx

    return _MIN_OPSET, min(_MAX_OPSET, int(onnx.defs.onnx_opset_version()))
