"""The runtimes that can execute the model of an archive: torch, ONNX Runtime, AOTInductor.

An archive contains model.pt and the file of the runtime that its manifest names. Every runtime
takes the images and returns the embeddings of `Model`.

Shapes: N images, H height, W width, C channels, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .searcher import MODEL, Model, SearcherError

TORCHSCRIPT = "torchscript"
FILES: Mapping[str, str] = {
    TORCHSCRIPT: MODEL,
    "onnxruntime": "model.onnx",
    "onnxruntime_fp16": "model.fp16.onnx",
    "onnxruntime_int8": "model.int8.onnx",
    "aoti": "model.aoti.pt2",
}
"""Runtime -> its model file. All but model.pt are written by `arcloop export`."""


def runtime_of(manifest: Mapping[str, Any]) -> str:
    """Return the runtime of an archive; archives that do not name one have a model.pt."""
    return str(manifest.get("runtime", {}).get("name", TORCHSCRIPT))


def load_runtime(folder: Path, manifest: Mapping[str, Any], device: str, threads: int) -> Model:
    """Load the model of an unpacked archive.

    Args:
        folder: Folder with the model file.
        manifest: Its "runtime" has the name, the sizes and the requirements of the model; its
            "parents" has the hash of the model.pt that the file was exported from.
        device: A torch device, for model.pt. Other runtimes compute on the CPU.
        threads: Number of threads of ONNX Runtime; torch has a setting for the whole process.

    Raises:
        SearcherError: The file or its runtime is missing, damaged, or of another version.
    """
    name = runtime_of(manifest)
    if name not in FILES:
        raise SearcherError(f"unknown runtime {name!r}; known: {', '.join(FILES)}")
    file = folder / FILES[name]
    if name == TORCHSCRIPT:
        return Model(file, device)
    facts, sha256 = manifest["runtime"], manifest["parents"]["model"]
    if name == "aoti":
        return CompiledModel(file, facts, sha256)
    return OnnxModel(file, facts, sha256, threads)


class OnnxModel(Model):
    """A model in ONNX Runtime, on the CPU; see `Model`.

    Args:
        path: The ONNX file.
        facts: image_shape, embedding_dim and the fields of `Conversion`.
        sha256: Hash of the model.pt that it was exported from, which the index refers to.
        threads: Number of threads that compute one batch.

    Raises:
        SearcherError: ONNX Runtime is not installed or cannot load the file.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], sha256: str, threads: int) -> None:
        self._read_sizes(facts)
        self.sha256 = sha256
        try:
            import onnxruntime
        except ImportError:
            raise SearcherError(
                f"{path.name} needs the package onnxruntime, which is not installed;"
                " install it, or deploy with deploy.runtime=torchscript"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only, which are raised
        # By default, idle threads busy-wait and take CPU time from the HTTP server.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as cause:  # noqa: BLE001 - its exceptions have no common base
            reason = str(cause).partition("\n")[0]
            raise SearcherError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {path.name}: {reason}"
            ) from None
        self._input = self._session.get_inputs()[0].name

    def embed(self, batch_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        images_NCHW = np.ascontiguousarray(batch_NHWC.transpose(0, 3, 1, 2))
        embeddings_ND: npt.NDArray[np.float32]
        (embeddings_ND,) = self._session.run(None, {self._input: images_NCHW})
        return embeddings_ND


class CompiledModel(Model):
    """A model that AOTInductor compiled for one kind of CPU and one version of torch; see `Model`.

    Args:
        path: The compiled package, which is native code.
        facts: Those of `OnnxModel`, and "requires" as `compiled_for` returns it.
        sha256: Hash of the model.pt that it was exported from, which the index refers to.

    Raises:
        SearcherError: The package was compiled for another machine, or cannot be loaded.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], sha256: str) -> None:
        from torch._inductor import aoti_load_package

        self._read_sizes(facts)
        self.sha256 = sha256
        here = compiled_for()
        missing = set(facts["requires"]["cpu"]) - set(here["cpu"])
        # An instruction that this CPU does not have would end the process.
        if missing or facts["requires"]["torch"] != here["torch"]:
            lacks = f"; this CPU lacks {', '.join(sorted(missing))}" if missing else ""
            raise SearcherError(
                f"{path.name} was compiled for torch {facts['requires']['torch']}, this is torch"
                f" {here['torch']}{lacks}; export it on this machine, or deploy with"
                " deploy.runtime=torchscript"
            )
        try:
            self._compiled = aoti_load_package(str(path))
        except Exception as cause:  # noqa: BLE001 - a C++ loader raises many types
            reason = str(cause).partition("\n")[0]
            raise SearcherError(f"torch cannot load {path.name}: {reason}") from None

    @torch.inference_mode()
    def embed(self, batch_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        images_NCHW = torch.from_numpy(batch_NHWC).permute(0, 3, 1, 2).contiguous()
        embeddings_ND: npt.NDArray[np.float32] = self._compiled(images_NCHW).numpy()
        return embeddings_ND


def compiled_for() -> dict[str, Any]:
    """Return what a compiled package depends on: the torch version and the CPU's instructions."""
    found = torch.cpu.get_capabilities()
    instructions = sorted(name for name, value in found.items() if value is True)
    return {"torch": torch.__version__, "cpu": instructions}
