"""Measures what an exported file loses on the query split, compared with the model.

The gallery is embedded by the model and the queries by the exported file, because that is how an
archive serves the file: its index contains the embeddings of the model, shortened if `index.dim` is
set.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from arcloop import artifacts
from arcloop.config.schema import EmbedSettings
from arcloop.data import Store
from arcloop.display.terminal import print_line
from arcloop.errors import ArtifactError
from arcloop.evaluation import evaluate_retrieval
from arcloop.export.compact import CompactFormat
from arcloop.retrieval import Gallery, embed, embed_gallery
from arcloop.retrieval.shortened import dim_of, shorten_both
from arcloop.runtime.runtimes import OnnxModel
from arcloop.runtime.searcher import MODEL, Model

_EMBED = EmbedSettings(batch_size=512, shard_rows=16_384, device="cpu")
_RECALL_AT = 5


def check_losses(
    run_dir: Path, folder: Path, formats: Sequence[CompactFormat], model: Model, store: Store
) -> dict[str, dict[str, float]]:
    """Measure exported files and the model on the query split, and compare them.

    Args:
        run_dir: The run; its gallery is used if it was embedded.
        folder: Folder with the exported files.
        formats: Their formats.
        model: model.pt of the run.
        store: The store of the run.

    Returns:
        File name -> result of `require_small_loss`.

    Raises:
        ArtifactError: A loss exceeds its bound.
    """
    found = {}
    index = run_dir / "index"
    dim = dim_of(artifacts.read(index, "index")) if artifacts.exists(index) else None
    with gallery_of(run_dir, store, model.sha256) as gallery:
        reference = measure_retrieval(*shorten_both(model, gallery, dim), store)
        for chosen in formats:
            exported = OnnxModel(
                folder / chosen.file, model.sizes(), model.sha256, torch.get_num_threads()
            )
            results = measure_retrieval(*shorten_both(exported, gallery, dim), store)
            found[chosen.file] = require_small_loss(chosen, results, reference)
            print_line(
                f"{chosen.file}: top-1 {results['top1']:.4f} on the query split, the model"
                f" {reference['top1']:.4f}"
            )
    return found


def measure_retrieval(model: Model, gallery: Gallery, store: Store) -> dict[str, float]:
    """Embed the query split and rank the gallery exactly.

    Args:
        model: Embeds the queries.
        gallery: The gallery.
        store: The store with the query split.

    Returns:
        "top1" and "recall_at_5", in [0, 1].

    Raises:
        ArtifactError: The gallery has the class of no query.
    """
    found = evaluate_retrieval(
        embed(model, store.batches("query", _EMBED.batch_size)),
        gallery.chunks,
        leave_one_out=store.leave_one_out,
        recall_at=(1, _RECALL_AT),
    )
    if "recall_at_1" not in found:
        raise ArtifactError(
            "no query has its class in the gallery, so the loss of a file cannot be measured",
            where=store.artifact.path,
            remedy="prepare a query split with classes of the gallery, or choose export=onnx",
        )
    return {"top1": found["recall_at_1"], "recall_at_5": found[f"recall_at_{_RECALL_AT}"]}


def require_small_loss(
    chosen: CompactFormat, exported: dict[str, float], reference: dict[str, float]
) -> dict[str, float]:
    """Check that an exported file loses no more than its format allows.

    Args:
        chosen: The format, with the bounds.
        exported: Result of `measure_retrieval` for the exported file.
        reference: Result for the model.

    Returns:
        The results of the exported file, and "top1_loss" and "recall_at_5_loss".

    Raises:
        ArtifactError: A loss exceeds its bound.
    """
    bounds = {"top1": chosen.max_top1_loss, "recall_at_5": chosen.max_recall_loss}
    losses = {name: reference[name] - exported[name] for name in bounds}
    failed = [
        f"{name} on the query split falls from {reference[name]:.4f} to {exported[name]:.4f},"
        f" by more than {bounds[name]:g}"
        for name, loss in losses.items()
        if loss > bounds[name]
    ]
    if failed:
        raise ArtifactError(
            f"{chosen.file}: {'; '.join(failed)}",
            where=f"export={chosen.name}",
            remedy=f"choose export=onnx, or raise export.{chosen.name}.max_top1_loss or"
            " max_recall_loss if the loss is acceptable",
        )
    return exported | {f"{name}_loss": loss for name, loss in losses.items()}


@contextlib.contextmanager
def gallery_of(run_dir: Path, store: Store, model_sha256: str) -> Iterator[Gallery]:
    """Yield the gallery of a run; if it was not embedded yet, embed it to a temporary folder."""
    folder = run_dir / "gallery"
    if artifacts.exists(folder):
        gallery = Gallery(folder)
        same_store = gallery.artifact.parents["store"] == store.artifact.sha256
        if same_store and gallery.model_sha256 == model_sha256:
            yield gallery
            return
    with tempfile.TemporaryDirectory() as name:
        made = Path(name) / "gallery"
        embed_gallery(run_dir / MODEL, store.artifact.path, made, _EMBED)
        yield Gallery(made)
