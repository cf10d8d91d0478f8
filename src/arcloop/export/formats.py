"""Export formats: model.pt, and additional files that compute the same embeddings.

Every format takes uint8 [B, C, H, W] with any B and returns float32 [B, D] of norm 1, like
model.pt. model.onnx is for ONNX Runtime, TensorRT, OpenVINO and other ONNX runtimes; model.pt2, a
torch.export program, for ExecuTorch and torch; model.aoti.pt2 is compiled for one kind of CPU. The
smaller, less exact ONNX files are in `arcloop.export.compact`.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from arcloop.artifacts.atomic import write_bytes
from arcloop.config.targets import require_extra
from arcloop.config.value_types import PositiveFloat, check_fields
from arcloop.errors import ConfigError, first_line
from arcloop.models import Embedder
from arcloop.runtime.runtimes import FILES

Images = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]
_INPUT, _OUTPUT = "images", "embeddings"
_METADATA_KEY = "arcloop.json"
_ONNX_WARNINGS = (
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed. Please remove usage of this function",
)
TORCH_EXPORT_WARNINGS = (
    "No complete tensor found in the group",  # does not apply to weights on the CPU
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # a call within torch
)
_LOCAL_METADATA = ("stack_trace", "from_node")
"""Metadata of graph nodes that contains local file paths and memory addresses."""


@dataclass(frozen=True, kw_only=True)
class TorchScript:
    """model.pt, which is always exported, because all other steps use it.

    Attributes:
        max_abs_diff: Largest allowed difference between eager and scripted embeddings, in any
            coordinate.
    """

    max_abs_diff: PositiveFloat

    def __post_init__(self) -> None:
        check_fields(self, "export.torchscript")


@dataclass(frozen=True, kw_only=True)
class Format(ABC):
    """A format that is exported in addition to model.pt.

    Attributes:
        max_abs_diff: Largest allowed difference from the eager model's embeddings, in any
            coordinate.
    """

    max_abs_diff: PositiveFloat
    name: ClassVar[str]
    """Name of the format in the config."""
    file: ClassVar[str]
    """Name of the exported file."""
    packages: ClassVar[tuple[str, ...]]
    """Distributions that determine the content of the file."""

    def __post_init__(self) -> None:
        check_fields(self, f"export.{self.name}")

    def require(self) -> None:
        """Check that the packages and programs that the format needs are installed.

        Raises:
            ConfigError: One is missing.
        """
        require_extra("onnx", *self.packages, where=f"export={self.name}")

    @abstractmethod
    def write(self, embedder: Embedder, path: Path, calibration_NCHW: Images | None = None) -> None:
        """Export an embedder in evaluation mode on the CPU.

        Args:
            embedder: The embedder.
            path: The file to write.
            calibration_NCHW: Images of the val split, for formats that measure value ranges; None:
                black images.

        Raises:
            ConfigError: The format cannot express the computation.
        """

    @abstractmethod
    def embed(self, path: Path, images_NCHW: Images) -> Embeddings:
        """Load an exported file and embed images; returns float32 [N, D]."""


@dataclass(frozen=True, kw_only=True)
class OnnxFormat(Format):
    """Exports to ONNX with torch's TorchScript-based exporter; embeds with ONNX Runtime.

    The newer exporter, which is based on torch.export, requires onnxscript and writes local file
    paths into the file, so that the bytes differ between machines.

    Attributes:
        opset: Version of the ONNX operator set; the runtime that serves the file must support it.
    """

    # 11 is the lowest opset for which torch exports a dynamic batch size, and 20 the highest of its
    # TorchScript-based exporter.
    opset: Annotated[int, Field(ge=11, le=20)]
    name: ClassVar[str] = "onnx"
    file: ClassVar[str] = FILES["onnxruntime"]
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")

    def write(self, embedder: Embedder, path: Path, calibration_NCHW: Images | None = None) -> None:
        self.save(self.to_onnx(embedder), embedder, path)

    def to_onnx(self, embedder: Embedder) -> Any:
        """Return the embedder as an onnx.ModelProto."""
        import onnx

        content = io.BytesIO()
        try:
            with ignore_warnings(_ONNX_WARNINGS):
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
            return model
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, onnx.checker.ValidationError,
                onnx.shape_inference.InferenceError) as cause:  # fmt: skip
            first_sentence = re.split(r"(?<=[^0-9])\. |\n", str(cause).strip(), maxsplit=1)[0]
            raise ConfigError(
                f"the network cannot be exported to ONNX opset {self.opset}: {first_sentence}",
                where=f"export={self.name}",
                remedy=f"choose a higher export.{self.name}.opset, up to 20, another backbone, or"
                " export=torch_export",
            ) from cause

    @staticmethod
    def save(model: Any, embedder: Embedder, path: Path) -> None:
        """Write an onnx.ModelProto with the sizes of images and embeddings as metadata."""
        sizes = {"image_shape": embedder.image_shape, "embedding_dim": embedder.embedding_dim}
        model.metadata_props.add(key=_METADATA_KEY, value=json.dumps(sizes))
        write_bytes(path, model.SerializeToString(deterministic=True))

    def embed(self, path: Path, images_NCHW: Images) -> Embeddings:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        embeddings: Embeddings
        (embeddings,) = session.run([_OUTPUT], {_INPUT: images_NCHW})
        return embeddings


@dataclass(frozen=True, kw_only=True)
class TorchExportFormat(Format):
    """Exports to a torch.export program with a dynamic batch size."""

    name: ClassVar[str] = "torch_export"
    file: ClassVar[str] = "model.pt2"
    packages: ClassVar[tuple[str, ...]] = ("torch",)

    def write(self, embedder: Embedder, path: Path, calibration_NCHW: Images | None = None) -> None:
        content = io.BytesIO()
        try:
            with ignore_warnings(TORCH_EXPORT_WARNINGS):
                program = torch_program(embedder)
                for module in program.graph_module.modules():
                    for node in getattr(getattr(module, "graph", None), "nodes", ()):
                        for key in _LOCAL_METADATA:
                            node.meta.pop(key, None)
                torch.export.save(program, content)
        except Exception as cause:  # torch.export raises many types without a common base
            raise ConfigError(
                f"the network cannot be exported with torch.export: {first_line(cause)}",
                where="export=torch_export",
                remedy="choose another backbone, or export=onnx",
            ) from cause
        write_bytes(path, content.getvalue())

    def embed(self, path: Path, images_NCHW: Images) -> Embeddings:
        with ignore_warnings(TORCH_EXPORT_WARNINGS), torch.inference_mode():
            module = torch.export.load(path).module()
            embeddings: Embeddings = module(torch.from_numpy(images_NCHW)).numpy()
        return embeddings


def torch_program(embedder: Embedder) -> torch.export.ExportedProgram:
    """Return the embedder as a torch.export program with a dynamic batch size."""
    batch = torch.export.Dim("batch", min=1)
    images = (example_images(embedder),)
    return torch.export.export(embedder, images, dynamic_shapes=({0: batch},), strict=False)


Exports = Mapping[str, TorchScript | Format | None]
"""The config group `export`: name -> format; None entries are skipped."""


def extra_formats(exports: Exports, *, at_least_one: bool = False) -> dict[str, Format]:
    """Return the formats that are exported in addition to model.pt.

    Args:
        exports: The config group `export`.
        at_least_one: Raise an error if there is no additional format.

    Raises:
        ConfigError: A package or program is missing, or there is no format.
    """
    formats = {name: f for name, f in exports.items() if isinstance(f, Format)}
    if at_least_one and not formats:
        raise ConfigError(
            "there is nothing to export: the run already contains model.pt",
            where="export",
            remedy="choose a format, e.g. export=onnx or export=torch_export",
        )
    for chosen in formats.values():
        chosen.require()
    return formats


def example_images(embedder: Embedder) -> torch.Tensor:
    """Return two black images, uint8 [2, C, H, W]; exporters make a batch size of 1 constant."""
    height, width, channels = embedder.image_shape
    return torch.zeros(2, channels, height, width, dtype=torch.uint8)


@contextlib.contextmanager
def ignore_warnings(messages: Sequence[str]) -> Iterator[None]:
    """Ignore warnings whose text starts with one of these regular expressions."""
    with warnings.catch_warnings():
        for message in messages:
            warnings.filterwarnings("ignore", message)
        yield
