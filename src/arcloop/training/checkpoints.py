"""Checkpoints that are whole or not there, and are read as data, never as code."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from arcloop.atomic import write_bytes
from arcloop.errors import ArtifactError


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint beside its place and renames it when it is on the disk.

    Lightning's own writer leaves half a file under the final name when the disk is full.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(Path(path), content.getvalue())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, weights only: nothing in it is executed.

    Raises:
        ArtifactError: There is no such checkpoint, or it is damaged.
    """
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, LookupError, pickle.UnpicklingError) as cause:
        raise ArtifactError(
            f"cannot read the checkpoint: {str(cause).partition(chr(10))[0]}",
            where=path,
            remedy="remove the file and train again",
        ) from None
