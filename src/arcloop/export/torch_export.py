"""Export to model.pt2, a torch.export program for AOTInductor, ExecuTorch and torch."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from arcloop.artifacts.atomic import write_bytes
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

_IGNORED_WARNINGS = (
    "No complete tensor found in the group",  # does not apply to weights on the CPU
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # a call within torch
)
_LOCAL_METADATA = ("stack_trace", "from_node")
"""Metadata of graph nodes that contains local file paths and memory addresses."""


@dataclass(frozen=True, kw_only=True)
class TorchExportFormat(Format):
    """Exports to a torch.export program with a dynamic batch size."""

    file: ClassVar[str] = "model.pt2"
    packages: ClassVar[tuple[str, ...]] = ("torch",)

    def write(self, embedder: Embedder, path: Path) -> None:
        batch = torch.export.Dim("batch", min=1)
        content = io.BytesIO()
        try:
            with ignore_warnings(_IGNORED_WARNINGS):
                program = torch.export.export(
                    embedder,
                    (example_images(embedder),),
                    dynamic_shapes=({0: batch},),
                    strict=False,
                )
                for module in program.graph_module.modules():
                    for node in getattr(getattr(module, "graph", None), "nodes", ()):
                        for key in _LOCAL_METADATA:
                            node.meta.pop(key, None)
                torch.export.save(program, content)
        except Exception as cause:  # torch.export raises many types without a common base
            raise ConfigError(
                "the network cannot be exported with torch.export:"
                f" {str(cause).strip().splitlines()[0]}",
                where="export=torch_export",
                remedy="choose another backbone, or export=onnx",
            ) from cause
        write_bytes(path, content.getvalue())

    def embed(self, path: Path, images_NHWC: Images) -> Embeddings:
        with ignore_warnings(_IGNORED_WARNINGS), torch.inference_mode():
            module = torch.export.load(path).module()
            images = torch.from_numpy(to_channels_first(images_NHWC))
            embeddings: Embeddings = module(images).numpy()
        return embeddings
