"""Checkpoints that are whole or not there, that tell when they are damaged, and are only data."""

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


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint beside its place and renames it when it is on the disk.

    Lightning's own writer leaves half a file under the final name when the disk is full. The last
    but one last.ckpt is kept, for the case that the last one is damaged later.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        path = Path(path)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == LAST and path.exists():
            path.replace(path.with_name(PREVIOUS))
        write_bytes(path, with_digest(content.getvalue()))


def with_digest(archive: bytes) -> bytes:
    """Give a zip archive its own sha256 as its comment: it stays a file that torch.load reads.

    Args:
        archive: What torch.save wrote, without a comment.
    """
    assert archive[-22:-18] == _END_OF_ZIP
    assert archive[-2:] == b"\0\0"
    content = archive[:-2] + _DIGEST_BYTES.to_bytes(2, "little")
    return content + _COMMENT + hashlib.sha256(content).hexdigest().encode()


def is_whole(content: bytes) -> bool:
    """Return whether a checkpoint is as it was written; one without a digest cannot be told."""
    body, comment = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    return comment == _COMMENT + hashlib.sha256(body).hexdigest().encode()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, weights only: nothing in it is executed.

    Raises:
        ArtifactError: There is no such checkpoint, or it is damaged.
    """
    reason = "it is torn or was changed after it was written"
    try:
        content = path.read_bytes()
        if is_whole(content):
            return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, EOFError, LookupError, pickle.UnpicklingError) as cause:
        reason = str(cause).partition("\n")[0]
    raise ArtifactError(
        f"cannot read the checkpoint: {reason}",
        where=path,
        remedy="remove the file and train again",
    )
