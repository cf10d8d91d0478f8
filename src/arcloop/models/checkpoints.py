"""Checkpoint files: atomic writing, detection of damage, and loading without code execution."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from arcloop.artifacts.atomic import write_bytes
from arcloop.errors import ArtifactError

LAST = "last.ckpt"
PREVIOUS = "last-previous.ckpt"
_END_OF_ZIP = b"PK\x05\x06"
_COMMENT = b"sha256:"
_DIGEST_BYTES = len(_COMMENT) + 64


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file, syncs it to disk, and renames it.

    Lightning's own writer leaves a truncated file under the final name when the disk is full. The
    previous last.ckpt is kept as last-previous.ckpt, in case last.ckpt is damaged later. The sha256
    of the file is stored as the comment of the zip archive, which torch.load ignores.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        path = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        archive = buffer.getvalue()
        assert archive[-22:-18] == _END_OF_ZIP
        assert archive[-2:] == b"\0\0"  # no comment yet
        content = archive[:-2] + _DIGEST_BYTES.to_bytes(2, "little")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == LAST and path.exists():
            path.replace(path.with_name(PREVIOUS))
        write_bytes(path, content + _COMMENT + hashlib.sha256(content).hexdigest().encode())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU with `weights_only=True`, which executes no code from it.

    Raises:
        ArtifactError: The checkpoint is missing or damaged.
    """
    reason = "it is truncated or was changed after it was written"
    try:
        content = path.read_bytes()
        body, comment = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if comment == _COMMENT + hashlib.sha256(body).hexdigest().encode():
            return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, LookupError, pickle.UnpicklingError) as cause:
        reason = str(cause).partition("\n")[0]
    raise ArtifactError(
        f"cannot read the checkpoint: {reason}",
        where=path,
        remedy="remove the file and train again",
    )
