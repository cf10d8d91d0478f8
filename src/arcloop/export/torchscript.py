"""The best checkpoint -> model.pt: scripted, and proven equal to the eager model."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from arcloop.distributed.batch_norm import SyncedBatchNorms
from arcloop.errors import ArtifactError, ConfigError
from arcloop.models import Embedder
from arcloop.models.checkpoints import read_checkpoint
from arcloop.runtime.searcher import Model, save_model

GOLDEN = "golden.npz"


def export_scripted(
    embedder: Embedder,
    checkpoint: Path,
    golden_NHWC: npt.NDArray[np.uint8],
    run_dir: Path,
    *,
    max_abs_diff: float,
) -> float:
    """Script an embedder with a checkpoint's weights, and keep a batch that proves it right.

    Writes model.pt, and golden.npz with the images and the eager model's embeddings of them, for
    every later load to be held against.

    Args:
        embedder: The architecture; its own weights are left alone.
        checkpoint: Whose weights are exported.
        golden_NHWC: Real images, uint8.
        run_dir: Where to write.
        max_abs_diff: Largest difference of any coordinate between eager and scripted.

    Returns:
        The largest difference found.

    Raises:
        ArtifactError: The checkpoint does not fit, or the scripted model computes something else.
    """
    eager = for_inference(embedder)
    eager.load_state_dict(embedder_weights(checkpoint))
    with _constants_in_order():
        scripted = torch.jit.script(eager)
    temporary = run_dir / ".model.pt.tmp"
    save_model(
        scripted,
        temporary,
        image_shape=eager.image_shape,
        embedding_dim=eager.embedding_dim,
    )
    with torch.inference_mode():
        expected_ND = eager(torch.from_numpy(golden_NHWC).permute(0, 3, 1, 2)).numpy()
    difference = float(np.abs(Model(temporary).embed(golden_NHWC) - expected_ND).max())
    if not difference <= max_abs_diff:
        temporary.unlink()
        raise ArtifactError(
            f"the scripted model differs from the eager one by {difference:.2e}, "
            f"more than {max_abs_diff:.0e}",
            where=checkpoint,
            remedy="find the layer whose scripted form computes something else",
        )
    temporary.replace(run_dir / "model.pt")
    np.savez(run_dir / GOLDEN, images=golden_NHWC, embeddings=expected_ND)
    return difference


def for_inference(embedder: Embedder) -> Embedder:
    """Copy an embedder to the CPU, in evaluation mode, of whole float32 layers."""
    eager = copy.deepcopy(embedder).cpu().float().eval()
    SyncedBatchNorms().revert(eager)
    return eager


def require_scriptable(embedder: Embedder) -> None:
    """Refuse before training what could not be exported after it.

    Raises:
        ConfigError: TorchScript cannot compile the backbone.
    """
    try:
        torch.jit.script(copy.deepcopy(embedder).cpu().eval())
    except Exception as cause:  # whatever its compiler raises on code that it cannot compile
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise ConfigError(
            f"the model cannot be scripted: {' '.join(lines[:3])[:300] or type(cause).__name__}",
            where="backbone, callbacks.export",
            remedy="choose another backbone, or leave callbacks.export out",
        ) from cause


class _InOrder(set[str]):
    def __iter__(self) -> Iterator[str]:
        return iter(sorted(super().__iter__()))


@contextlib.contextmanager
def _constants_in_order() -> Iterator[None]:
    """Make torch write a class's constants in one order.

    It goes through them as a set, so the bytes of model.pt, and with them every hash that is built
    on them, would change with PYTHONHASHSEED.
    """
    namespace = vars(torch.jit._recursive)  # noqa: SLF001 - its name `set`, nobody else's
    namespace["set"] = _InOrder
    try:
        yield
    finally:
        del namespace["set"]


def embedder_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the embedder's part of a checkpoint's state dict.

    Raises:
        ArtifactError: There is no such checkpoint, or it is damaged.
    """
    state = read_checkpoint(checkpoint)["state_dict"]
    prefix = "embedder."
    return {key.removeprefix(prefix): w for key, w in state.items() if key.startswith(prefix)}
