"""Export to native code for one kind of CPU."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from arcloop.errors import ConfigError, first_line
from arcloop.export.formats import (
    TORCH_EXPORT_WARNINGS,
    Embeddings,
    Format,
    Images,
    ignore_warnings,
    torch_program,
)
from arcloop.models import Embedder
from arcloop.runtime.runtimes import FILES


@dataclass(frozen=True, kw_only=True)
class CompiledFormat(Format):
    """Compiles to native code with AOTInductor, for this kind of CPU and this version of torch.

    The bytes differ between exports, because torch writes random identifiers and paths of its
    cache into the package.
    """

    name: ClassVar[str] = "aoti"
    file: ClassVar[str] = FILES["aoti"]
    packages: ClassVar[tuple[str, ...]] = ("torch",)

    def require(self) -> None:
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise ConfigError(
                f"the C++ compiler {compiler} is not installed",
                where="export=aoti",
                remedy="install it (Debian: g++), set CXX, or choose export=onnx",
            )

    def write(self, embedder: Embedder, path: Path, calibration_NCHW: Images | None = None) -> None:
        from torch._inductor import aoti_compile_and_package

        try:
            with ignore_warnings(TORCH_EXPORT_WARNINGS):
                aoti_compile_and_package(torch_program(embedder), package_path=str(path))
        except Exception as cause:  # torch.export and the compiler raise many types
            raise ConfigError(
                f"the network cannot be compiled: {first_line(cause)}",
                where="export=aoti",
                remedy="choose another backbone, or export=onnx",
            ) from cause

    def embed(self, path: Path, images_NCHW: Images) -> Embeddings:
        from torch._inductor import aoti_load_package

        with torch.inference_mode():
            module = aoti_load_package(str(path))
            embeddings: Embeddings = module(torch.from_numpy(images_NCHW)).numpy()
        return embeddings
