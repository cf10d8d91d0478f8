"""Gallery embeddings -> faiss index with labels and a calibrated open-set threshold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.writer import write_artifact
from arcloop.config.schema import CalibrationSettings, EmbedSettings
from arcloop.data import Store
from arcloop.display.terminal import track
from arcloop.errors import ArtifactError
from arcloop.retrieval import AutoIndex, FaissIndex, Gallery, embed, load_model, write_index
from arcloop.retrieval.calibration import calibrate_threshold


def build_index(
    model: Path,
    store: Path,
    gallery: Path,
    output: Path,
    *,
    index: FaissIndex | AutoIndex,
    calibration: CalibrationSettings,
    embed_settings: EmbedSettings,
    reuse: bool = False,
) -> Artifact:
    """Build the index over a gallery, and calibrate on val when an answer is "unknown".

    Args:
        model: model.pt, which embeds val.
        store: Folder of the `store` with val.
        gallery: Folder of a `gallery` made by that model.
        output: Folder of the `index` to write.
        index: What to build.
        calibration: How to choose the threshold.
        embed_settings: How to embed val.
        reuse: Return what is at `output` if it was made of the same parts with these settings.

    Raises:
        ArtifactError: A part is missing or damaged, or the gallery is of another model.
        ConfigError: The gallery is too small for this index.
    """
    images, embeddings = Store.open(store), Gallery(gallery)
    embedder = load_model(model, embed_settings.device)
    require_same_model(embeddings, embedder.sha256)
    kind = type(index)  # another choice may have other settings: see reproduce
    target = {"_target_": f"{kind.__module__}.{kind.__qualname__}"}
    config = {"index": target | asdict(index), "calibration": asdict(calibration)}
    parents = {"gallery": embeddings.artifact.sha256, "model": embedder.sha256}
    if reuse and (current := artifacts.load_if_current(output, "index", config, parents)):
        return current
    with write_artifact(output, "index", config=config, parents=parents) as writer:
        built, choice = index.make(embeddings)
        threshold = _threshold(images, embedder, embeddings, calibration, embed_settings)
        classes = images.classes
        writer.info |= write_index(built, embeddings, writer.path, classes, threshold)
        writer.info["choice"] = choice
        writer.count = embeddings.rows
    return artifacts.load(output, "index")


def _threshold(
    images: Store,
    embedder: Any,
    gallery: Gallery,
    calibration: CalibrationSettings,
    settings: EmbedSettings,
) -> float:
    rows = images.rows("val")
    step = -(-rows // calibration.max_queries)
    with track("calibrate", rows) as advance:

        def sampled() -> Iterator[Any]:
            first = 0
            for batch_NHWC, labels in images.batches("val", settings.batch_size):
                advance(len(labels))
                yield batch_NHWC[first::step], labels[first::step]
                first = (first - len(labels)) % step

        queries = embed(embedder, sampled())
        return calibrate_threshold(queries, gallery.chunks, calibration.far)


def require_same_model(gallery: Gallery, model_sha256: str) -> None:
    """Refuse a gallery that another model embedded.

    Raises:
        ArtifactError: It is of another model.
    """
    if gallery.model_sha256 != model_sha256:
        raise ArtifactError(
            "the gallery was embedded by another model",
            where=gallery.artifact.path,
            remedy="embed it again: `arcloop embed`",
        )
