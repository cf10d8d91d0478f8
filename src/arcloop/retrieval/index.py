"""Builds, writes and opens the faiss index of a gallery, with labels and open-set threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import faiss
import numpy as np
from pydantic import Field

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import write_json
from arcloop.artifacts.writer import write_artifact
from arcloop.config.schema import CalibrationSettings, EmbedSettings
from arcloop.config.value_types import PositiveInt, check_fields
from arcloop.data import Store
from arcloop.display.terminal import track
from arcloop.errors import ArtifactError, ConfigError
from arcloop.retrieval.calibration import Calibration, calibrate
from arcloop.retrieval.duplicates import find_equal_rows
from arcloop.retrieval.embed import Embeddings, Gallery, load_model, require_same_model
from arcloop.retrieval.shortened import build_shortened, require_shorter, shorten_both
from arcloop.retrieval.unknown_images import UnknownImages
from arcloop.runtime.equal_rows import Rows
from arcloop.runtime.searcher import INDEX, LABELS, SearcherError, read_index, read_labels

if TYPE_CHECKING:
    from arcloop.retrieval.auto_index import AutoIndex

_ANY_ROWS = 100_000
_DIVISIBLE = 60_060  # by 1 to 7, and by 10 to 15
_MIN_TRAINING_ROWS = 39  # per cell; faiss warns below 39
_MIN_TRAINING_ROWS_EXCLUDED = 30  # if some rows are excluded from training


@dataclass(frozen=True, kw_only=True)
class FaissIndex:
    """Builds an index from a faiss factory string; configured in conf/index/.

    Args:
        factory: A faiss `index_factory` string. "{nlist}" is replaced by a number of cells for the
            gallery: 4 sqrt(rows), with at least 39 training rows per cell.
        search: faiss search parameters stored in the index file, e.g. {"nprobe": 16}.
        train_rows: Number of evenly spaced gallery rows for training, if the index needs training.
        dim: Number of coordinates that are compared, the first ones of the embeddings; None: all.

    Source:
        https://github.com/facebookresearch/faiss/wiki/The-index-factory
    """

    factory: str
    search: dict[str, int]
    train_rows: PositiveInt
    dim: Annotated[int, Field(ge=2)] | None

    def __post_init__(self) -> None:
        check_fields(self, "index")
        try:  # refuses a misspelt factory or parameter early
            self._empty(64, _ANY_ROWS)
        except ConfigError as cause:
            try:
                self._empty(_DIVISIBLE, _ANY_ROWS)  # a number of subquantizers must divide the size
            except ConfigError:
                raise cause from None

    def check(self, dim: int, rows: int | None = None) -> None:
        """Check that the index can be built, before there are embeddings.

        Args:
            dim: Size of an embedding.
            rows: Number of gallery rows; None if it is not known yet.

        Raises:
            ConfigError: faiss rejects the size, or the gallery is too small to train the index.
        """
        if self.dim is not None:
            require_shorter(self.dim, dim)
            dim = self.dim
        index = self._empty(dim, rows or _ANY_ROWS)
        if rows is None or index.is_trained:
            return
        ivf = faiss.try_extract_index_ivf(index)
        inner = faiss.downcast_index(index if ivf is None else ivf)
        needed = max(getattr(ivf, "nlist", 1), getattr(getattr(inner, "pq", None), "ksub", 1))
        if rows < needed:
            raise ConfigError(
                f"a gallery of {rows} images is too small to train the index {self.factory!r},"
                f" which needs at least {needed}",
                where="index.factory",
                remedy="use index=flat or a larger gallery",
            )
        if -(-rows // -(-rows // self.train_rows)) < needed:
            raise ConfigError(
                f"index.train_rows={self.train_rows} is too small to train the index"
                f" {self.factory!r}, which needs at least {needed} rows",
                remedy=f"set index.train_rows={needed} or more",
            )

    def build(
        self, gallery: Gallery, *, not_trained: Rows | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Train the index if it needs training, and add the gallery in row order.

        Args:
            gallery: The rows to add.
            not_trained: Row numbers that are excluded from training.

        Returns:
            A faiss index of inner product with `gallery.rows` rows, and its description: "factory",
            with the numbers for this gallery, "search", and "dim" if embeddings are shortened.

        Raises:
            ConfigError: The gallery is too small for this index.
        """
        self.check(gallery.embedding_dim, gallery.rows)
        if self.dim is not None:
            return build_shortened(self, gallery, self.dim)
        index = self._empty(gallery.embedding_dim, gallery.rows)
        with track("build index", gallery.rows, "vectors") as advance:
            if not index.is_trained:
                rows, embeddings = sample_rows(gallery, self.train_rows)
                if not_trained is not None:
                    embeddings = embeddings[~np.isin(rows, not_trained)]
                    clustering = faiss.extract_index_ivf(index).cp
                    clustering.min_points_per_centroid = _MIN_TRAINING_ROWS_EXCLUDED
                try:
                    index.train(embeddings)
                except RuntimeError as cause:
                    raise ConfigError(
                        f"a gallery of {gallery.rows} rows is too small to train the index "
                        f"{self.factory!r}: {_first_line(cause)}",
                        remedy="use index=flat or a larger gallery",
                    ) from None
            _reserve(index, gallery.rows)
            for batch, _ in gallery.chunks():
                index.add(batch)
                advance(len(batch))
        return index, {"factory": self._factory(gallery.rows), "search": dict(self.search)}

    def _empty(self, dim: int, rows: int) -> Any:
        """Make an empty, untrained faiss index for a gallery of this size."""
        try:
            index = faiss.index_factory(dim, self._factory(rows), faiss.METRIC_INNER_PRODUCT)
            index.verbose = False
            space = faiss.ParameterSpace()
            for name, value in self.search.items():
                space.set_index_parameter(index, name, value)
            inner = faiss.downcast_index(index)
            if isinstance(inner, faiss.IndexPQ) and inner.pq.nbits < 3:
                raise RuntimeError("codes of less than 3 bits can be trained but not searched")
        except RuntimeError as cause:
            raise ConfigError(
                f"faiss rejects index.factory={self.factory!r} with index.search={self.search} for"
                f" embeddings of size {dim}: {_first_line(cause)}",
                remedy="choose an index or an embedder.embedding_dim that fit; the page 'The index"
                " factory' of the faiss wiki lists the valid strings",
            ) from None
        return index

    def _factory(self, rows: int) -> str:
        nlist = max(1, min(int(4 * math.sqrt(rows)), rows // _MIN_TRAINING_ROWS))
        return self.factory.replace("{nlist}", str(nlist))


def build_index(
    model: Path,
    store: Path,
    gallery: Path,
    output: Path,
    *,
    index: FaissIndex | AutoIndex,
    calibration: CalibrationSettings,
    embed_settings: EmbedSettings,
    held_out: Sequence[str] = (),
    reuse: bool = False,
) -> Artifact:
    """Build the index of a gallery and calibrate the threshold for "unknown".

    Args:
        model: model.pt.
        store: Folder of the `store` that the model was trained on.
        gallery: Folder of the `gallery`, embedded by this model.
        output: Folder of the `index` to write.
        index: Builds the faiss index.
        calibration: Settings of the threshold.
        embed_settings: Settings for embedding the images for the calibration.
        held_out: Names of the classes that were left out of training.
        reuse: Return the artifact at `output` if it has the same parents and settings.

    Raises:
        ArtifactError: A parent is missing or damaged, or the gallery is from another model.
        ConfigError: The gallery is too small for this index, or there are too few unknown images.
    """
    images, embeddings = Store.open(store), Gallery(gallery)
    embedder = load_model(model, embed_settings.device)
    require_same_model(embeddings, embedder.sha256)
    kind = type(index)  # recorded, because the settings depend on it
    target = {"_target_": f"{kind.__module__}.{kind.__qualname__}"}
    config = {"index": target | asdict(index), "calibration": asdict(calibration)}
    parents = {"gallery": embeddings.artifact.sha256, "model": embedder.sha256}
    if calibration.unknown is not None:
        parents["unknown"] = UnknownImages(calibration).sha256()
    if reuse and (current := artifacts.load_if_current(output, "index", config, parents)):
        return current
    with write_artifact(output, "index", config=config, parents=parents) as writer:
        faiss_index, choice = index.build(embeddings)
        # The threshold applies to the similarities of the index.
        embedder, embeddings = shorten_both(embedder, embeddings, index.dim)
        found = calibrate(
            embedder, images, embeddings, calibration, embed_settings.batch_size, held_out
        )
        writer.info |= write_index(faiss_index, embeddings, writer.path, images.classes, found)
        writer.info |= {"choice": choice, "calibration": found.record()}
        writer.info["held_out_classes"] = list(held_out)
        writer.count = embeddings.rows
    return artifacts.load(output, "index")


def write_index(
    index: Any, gallery: Gallery, folder: Path, classes: Sequence[str], calibration: Calibration
) -> dict[str, int]:
    """Write faiss_index.bin, faiss_label.json and faiss_label.npy.

    Args:
        index: faiss index of the gallery's rows.
        gallery: The gallery.
        folder: Existing folder for the files.
        classes: Class names by label.
        calibration: The threshold, and how it was made.

    Returns:
        {"rows": number of rows, "bytes": size of the index file}, for the manifest.
    """
    faiss.write_index(index, str(folder / INDEX))
    labels = {
        "classes": list(classes),
        "threshold": calibration.threshold,
        "calibration": calibration.record(),
        "model_sha256": gallery.model_sha256,
        "equal_rows": find_equal_rows(gallery.chunks).groups(),
    }
    write_json(folder / LABELS, labels, indent=None)
    np.save((folder / LABELS).with_suffix(".npy"), gallery.labels)
    return {"rows": index.ntotal, "bytes": (folder / INDEX).stat().st_size}


def open_index(
    path: Path, model_sha256: str, *, memory_map: bool = False
) -> tuple[Artifact, Any, dict[str, Any]]:
    """Load an `index` artifact, its faiss index and its labels.

    Args:
        path: Folder of the artifact.
        model_sha256: Required hash of the model that the index was built from.
        memory_map: Map the file, so that the processes of a machine share its memory.

    Raises:
        ArtifactError: The index is missing or damaged, or was built from another model.
    """
    artifact = artifacts.load(path, "index")
    try:
        index = read_index(path / INDEX, memory_map=memory_map)
        labels = read_labels(path / LABELS)
    except SearcherError as cause:
        raise ArtifactError(str(cause), where=path, remedy="build it again") from None
    if labels["model_sha256"] != model_sha256:
        raise ArtifactError(
            "the index was built from another model",
            where=path,
            remedy="embed the gallery and build the index again: `arcloop embed`, `arcloop index`",
        )
    return artifact, index, labels


def sample_rows(gallery: Gallery, rows: int) -> tuple[Rows, Embeddings]:
    """Return at most `rows` evenly spaced rows of a gallery: row numbers [n], embeddings [n, D]."""
    step = max(1, math.ceil(gallery.rows / rows))
    first, picked = 0, []
    for embeddings, _ in gallery.chunks():
        picked.append(embeddings[first::step])
        first = (first - len(embeddings)) % step
    return np.arange(0, gallery.rows, step, dtype=np.int64), np.concatenate(picked)


def _reserve(index: Any, rows: int) -> None:
    """Allocate memory for all rows at once; growing an array needs memory for two copies."""
    flat = index.storage if isinstance(index, faiss.IndexHNSW) else index
    flat = faiss.downcast_index(flat)
    if isinstance(flat, faiss.IndexFlatCodes):
        flat.codes.resize(rows * flat.code_size)
        flat.codes.resize(0)


def _first_line(cause: Exception) -> str:
    return str(cause).rpartition(": ")[2].splitlines()[0]
