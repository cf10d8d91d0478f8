"""model.onnx: for ONNX Runtime, TensorRT, OpenVINO and whatever else reads ONNX."""

from __future__ import annotations

import importlib.metadata
import io
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from arcloop.artifacts.atomic import write_bytes
from arcloop.config.extras import require_extra
from arcloop.config.value_types import PositiveInt, check
from arcloop.errors import ConfigError
from arcloop.export.formats import Embeddings, Format, Images, example, planes
from arcloop.models import Embedder

_INPUT, _OUTPUT = "images", "embeddings"
_FACTS = "arcloop.json"
_DEPRECATED = (  # upstream; see OnnxFormat for why it is used
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed. Please remove usage of this function",
)


@dataclass(frozen=True, kw_only=True)
class OnnxFormat(Format):
    """ONNX by torch's TorchScript-based exporter, held against ONNX Runtime.

    The newer, torch.export-based exporter takes ten times as long for these networks, needs another
    package, and writes paths of the machine into the file, which then differs from run to run.

    Attributes:
        opset: Version of ONNX's operator set; the newest that the runtimes to serve it know.
        max_abs_diff: Largest difference of any coordinate from the eager model's embeddings.
    """

    opset: PositiveInt
    file: ClassVar[str] = "model.onnx"

    def __post_init__(self) -> None:
        check("export.onnx", opset=(self.opset, PositiveInt))

    def require(self) -> None:
        require_extra("onnx", "onnx", "onnxruntime", where="export=onnx")
        lowest, highest = opset_range()
        if not lowest <= self.opset <= highest:
            raise ConfigError(
                f"export.onnx.opset={self.opset}: torch {torch.__version__} and onnx"
                f" {importlib.metadata.version('onnx')} write opsets {lowest} to {highest}",
                remedy=f"choose export.onnx.opset from {lowest} to {highest}",
            )

    def write(self, embedder: Embedder, path: Path) -> None:
        import onnx

        content = io.BytesIO()
        try:
            with warnings.catch_warnings():
                for message in _DEPRECATED:
                    warnings.filterwarnings("ignore", message, DeprecationWarning)
                torch.onnx.export(
                    embedder,
                    (example(embedder),),
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
            raise ConfigError(
                f"ONNX opset {self.opset} cannot express this network: {_first_sentence(cause)}",
                where="export=onnx",
                remedy=f"choose a higher export.onnx.opset, up to {opset_range()[1]}, another"
                " backbone, or export=torch_export",
            ) from cause
        facts = {
            "image_shape": list(embedder.image_shape),
            "embedding_dim": embedder.embedding_dim,
        }
        model.metadata_props.add(key=_FACTS, value=json.dumps(facts))
        write_bytes(path, model.SerializeToString(deterministic=True))

    def embed(self, path: Path, images_NHWC: Images) -> Embeddings:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        embeddings: Embeddings
        (embeddings,) = session.run([_OUTPUT], {_INPUT: planes(images_NHWC)})
        return embeddings

    def made_with(self) -> Mapping[str, str]:
        return {name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime")}


def opset_range() -> tuple[int, int]:
    """Return the lowest and the highest opset that the installed torch and onnx write.

    Under 11, torch cannot fold the constants of a batch of any size.
    """
    import onnx
    from torch.onnx import _constants

    highest = int(_constants.ONNX_TORCHSCRIPT_EXPORTER_MAX_OPSET)
    return 11, min(highest, int(onnx.defs.onnx_opset_version()))


def _first_sentence(cause: BaseException) -> str:
    return re.split(r"(?<=[^0-9])\. |\n", str(cause).strip(), maxsplit=1)[0]
