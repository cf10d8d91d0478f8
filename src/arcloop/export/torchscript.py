"""Export of a checkpoint to model.pt: scripts the model and compares it with the eager one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from arcloop.distributed.batch_norm import SynchronizedBatchNorm
from arcloop.errors import ArtifactError, ConfigError
from arcloop.models import Embedder
from arcloop.models.checkpoints import read_checkpoint
from arcloop.runtime.golden_batch import GOLDEN
from arcloop.runtime.images import DEFAULT_CONVERSION, Conversion
from arcloop.runtime.searcher import MODEL, Model, save_model

_PREFIX = "embedder."  # prefix of the embedder's weights in a checkpoint


def export_scripted(
    embedder: Embedder,
    checkpoint: Path,
    golden_NHWC: npt.NDArray[np.uint8],
    run_dir: Path,
    *,
    max_abs_diff: float,
    conversion: Conversion = DEFAULT_CONVERSION,
    quality: bool = False,
) -> float:
    """Script an embedder with the weights of a checkpoint, and check it on a batch of images.

    Writes model.pt, and golden.npz with the images and their eager embeddings. Later
    steps check other exports and deployments against golden.npz.

    Args:
        embedder: Defines the architecture; its weights are neither used nor changed.
        checkpoint: Path of the checkpoint with the weights to export.
        golden_NHWC: Real images, uint8.
        run_dir: Folder to write to.
        max_abs_diff: Largest allowed difference between eager and scripted embeddings, in any
            coordinate.
        conversion: How `Model.decode` converts images.
        quality: The norms of the features are a measure of quality, see `Head.norm_is_quality`.

    Returns:
        The largest difference.

    Raises:
        ArtifactError: The checkpoint is damaged or does not fit, or the difference is too large.
    """
    state = read_checkpoint(checkpoint)["state_dict"]
    weights = {k.removeprefix(_PREFIX): w for k, w in state.items() if k.startswith(_PREFIX)}
    eager = for_inference(embedder, weights)
    with _sorted_constants():
        scripted = torch.jit.script(eager)
    temporary = run_dir / ".model.pt.tmp"
    save_model(
        scripted,
        temporary,
        image_shape=eager.image_shape,
        embedding_dim=eager.embedding_dim,
        conversion=conversion,
        quality=quality,
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
            remedy="find the layer whose scripted form computes different values",
        )
    temporary.replace(run_dir / MODEL)
    np.savez(run_dir / GOLDEN, images=golden_NHWC, embeddings=expected_ND)
    return difference


def for_inference(embedder: Embedder, weights: Mapping[str, Tensor] | None = None) -> Embedder:
    """Copy an embedder to the CPU, in float32 and evaluation mode, with standard batch norms.

    If the backbone has a method `prepare_export`, it is called, to merge adapters into the weights.

    Args:
        embedder: The embedder.
        weights: Weights of the copy; None for those of the embedder.
    """
    eager = copy.deepcopy(embedder).cpu().float().eval()
    SynchronizedBatchNorm().revert(eager)
    if weights is not None:
        eager.load_state_dict(weights)
    if hasattr(eager.backbone, "prepare_export"):
        eager.backbone.prepare_export()  # type: ignore[operator]
    return eager


def require_scriptable(embedder: Embedder) -> None:
    """Check before training that TorchScript can compile the model.

    Raises:
        ConfigError: TorchScript cannot compile the backbone.
    """
    try:
        # torch caches the compiled types, so their constants must be sorted here too.
        with _sorted_constants():
            torch.jit.script(for_inference(embedder))
    except Exception as cause:  # the TorchScript compiler raises many types
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise ConfigError(
            f"the model cannot be scripted: {' '.join(lines[:3])[:300] or type(cause).__name__}",
            where="backbone, callbacks.export",
            remedy="choose another backbone, or set callbacks.export=null",
        ) from cause


class _SortedSet(set[str]):
    def __iter__(self) -> Iterator[str]:
        return iter(sorted(super().__iter__()))


@contextlib.contextmanager
def _sorted_constants() -> Iterator[None]:
    """Make torch.jit.script write the constants of a module in sorted order.

    torch iterates over a set of their names, so the bytes of model.pt would otherwise depend on
    PYTHONHASHSEED. There is no public option:
    https://github.com/pytorch/pytorch/blob/v2.13.0/torch/jit/_recursive.py#L296
    """
    namespace = vars(torch.jit._recursive)  # noqa: SLF001 - shadows `set` in this module only
    namespace["set"] = _SortedSet
    try:
        yield
    finally:
        del namespace["set"]
