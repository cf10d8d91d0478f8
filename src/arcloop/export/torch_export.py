"""model.pt2: a torch.export program, for AOTInductor, ExecuTorch and torch without TorchScript."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from arcloop.artifacts.atomic import write_bytes
from arcloop.errors import ConfigError
from arcloop.export.formats import Embeddings, Format, Images, example, planes
from arcloop.models import Embedder

_UNSAID = (
    "No complete tensor found in the group",  # weights are on the CPU, where it does not matter
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # torch's use of torch
)
_OF_THIS_MACHINE = ("stack_trace", "from_node")
"""What torch notes of each operation that holds paths and addresses of where it was exported."""


@dataclass(frozen=True, kw_only=True)
class TorchExportFormat(Format):
    """A torch.export program with a batch of any size.

    Attributes:
        max_abs_diff: Largest difference of any coordinate from the eager model's embeddings.
    """

    file: ClassVar[str] = "model.pt2"

    def require(self) -> None:
        """Do nothing: torch brings it."""

    def write(self, embedder: Embedder, path: Path) -> None:
        batch = torch.export.Dim("batch", min=1)
        content = io.BytesIO()
        try:
            with _quiet():
                program = torch.export.export(
                    embedder, (example(embedder),), dynamic_shapes=({0: batch},), strict=False
                )
                for module in program.graph_module.modules():
                    for node in getattr(getattr(module, "graph", None), "nodes", ()):
                        for note in _OF_THIS_MACHINE:
                            node.meta.pop(note, None)
                torch.export.save(program, content)
        except Exception as cause:  # torch.export knows many, with no common base
            raise ConfigError(
                f"torch.export cannot express this network: {str(cause).strip().splitlines()[0]}",
                where="export=torch_export",
                remedy="choose another backbone, or export=onnx",
            ) from cause
        write_bytes(path, content.getvalue())

    def embed(self, path: Path, images_NHWC: Images) -> Embeddings:
        with _quiet(), torch.inference_mode():
            module = torch.export.load(path).module()
            embeddings: Embeddings = module(torch.from_numpy(planes(images_NHWC))).numpy()
        return embeddings

    def made_with(self) -> Mapping[str, str]:
        return {"torch": torch.__version__}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in _UNSAID:
            warnings.filterwarnings("ignore", message)
        yield
