"""The model that a candidate is compared with: a run, an archive, or the live one of a store."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from arcloop import artifacts
from arcloop.artifacts import MANIFEST, Artifact
from arcloop.artifacts.atomic import remove_abandoned, temporary_sibling
from arcloop.artifacts.metrics import read_metrics
from arcloop.config.composition import build_node
from arcloop.config.evaluation import EvaluateSettings
from arcloop.config.schema import EmbedSettings
from arcloop.data import Store
from arcloop.distributed.process_group import ProcessGroup
from arcloop.errors import ArtifactError, ConfigError, first_line
from arcloop.evaluation.evaluator import compute_evaluation
from arcloop.evaluation.pairs import hash_pair_lists
from arcloop.evaluation.part import evaluate_part
from arcloop.evaluation.query_results import FILE, QueryResults, load_query_results
from arcloop.evaluation.setup import make_setup
from arcloop.retrieval import Gallery, load_model
from arcloop.retrieval.embed import embed_gallery
from arcloop.runtime.golden_batch import GOLDEN
from arcloop.runtime.searcher import LABELS, MODEL

_KEY = "evaluate.gate.versus"
_LIVE = "live.json"  # of a model store, see arcloop.serving.model_store
_FLAT = {
    "_target_": "arcloop.retrieval.FaissIndex", "factory": "Flat", "search": {}, "train_rows": 1,
}  # fmt: skip
_UNREADABLE = (
    ArtifactError, OSError, EOFError, zipfile.BadZipFile, ValueError, KeyError, TypeError,
    AttributeError,
)  # fmt: skip


@dataclass(frozen=True)
class Incumbent:
    """A model with its index.

    Attributes:
        name: The value of the config.
        path: Folder of the run, or the archive.
        sha256: Hash of the manifest of its evaluation, or of the manifest of the archive.
        index: Config of its index; that of an exact index, if an archive does not contain it.
        evaluation: Its own evaluation; None for an archive.
    """

    name: str
    path: Path
    sha256: str
    index: Mapping[str, Any]
    evaluation: Artifact | None

    def read_file(self, name: str) -> bytes:
        """Return the content of a file of the model or the index."""
        if self.evaluation is not None:
            folder = self.path / "index" if name == LABELS else self.path
            return (folder / name).read_bytes()
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(name)


def find_incumbent(versus: str) -> Incumbent:
    """Find the incumbent without loading its model.

    Args:
        versus: Folder of a run with an evaluation, folder of a model store, whose live version is
            taken, or an archive.

    Raises:
        ConfigError: It is none of these.
    """
    path = Path(versus)
    with _readable(versus):
        if (path / _LIVE).is_file():
            live = json.loads((path / _LIVE).read_bytes())
            path = path / f"{live['name']}-{live['live']}.mar"
        if path.suffix == ".mar":
            with zipfile.ZipFile(path) as archive:
                content = archive.read(MANIFEST)
            sha256 = hashlib.sha256(content).hexdigest()
            return Incumbent(versus, path, sha256, json.loads(content).get("index", _FLAT), None)
        artifacts.read(path, "run")
        evaluation = artifacts.read(path / "evaluation", "evaluation")
        index = artifacts.read(path / "index", "index").config["index"]
    return Incumbent(versus, path, evaluation.sha256, index, evaluation)


def check_incumbent(versus: str, image_shape: Sequence[int]) -> Incumbent:
    """Return the incumbent; before training, this shows whether it can be evaluated.

    Args:
        versus: See `find_incumbent`.
        image_shape: (height, width, channels) of the images on which it is compared.

    Raises:
        ConfigError: There is no incumbent, its golden batch cannot be read, or it takes images of
            another shape.
    """
    incumbent = find_incumbent(versus)
    with _readable(versus), np.load(io.BytesIO(incumbent.read_file(GOLDEN))) as golden:
        shape = golden["images"].shape[1:]
    if tuple(shape) != tuple(image_shape):
        raise ConfigError(
            f"it takes images of shape {list(shape)}, but those of the store have"
            f" {list(image_shape)} (height, width, channels)",
            where=f"{_KEY}={versus}",
            remedy=f"prepare the images in its size, or set {_KEY}=null",
        )
    return incumbent


@contextmanager
def _readable(versus: str) -> Iterator[None]:
    """Raise a ConfigError if a file of the incumbent is missing or damaged."""
    try:
        yield
    except _UNREADABLE as cause:
        reason = cause.what if isinstance(cause, ArtifactError) else first_line(cause)
        raise ConfigError(
            f"there is nothing to compare with: {reason}",
            where=f"{_KEY}={versus}",
            remedy="pass a run that was evaluated, an archive, or a model store with a live"
            f" version; {_KEY}=null compares with nothing",
        ) from None


def answers_of_incumbent(
    incumbent: Incumbent,
    images: Store,
    gallery_images: Store,
    output: Path,
    *,
    settings: EvaluateSettings,
    embed_settings: EmbedSettings,
    group: ProcessGroup,
) -> tuple[QueryResults, Mapping[str, float]] | None:
    """Return the incumbent's answers to the queries of a store, and its metrics.

    If the incumbent was evaluated on this store with the same settings, its stored results are
    returned. Otherwise it embeds the gallery and the queries of the store, and is evaluated with
    an index of its own kind and its own threshold.

    Args:
        incumbent: The incumbent.
        images: Store of the queries.
        gallery_images: Store of the gallery.
        output: Folder of the candidate's evaluation; a temporary folder is created next to it.
        settings: Evaluation settings of the candidate.
        embed_settings: Embedding settings.
        group: Processes that share the work. None is returned on other ranks than 0.
    """
    found = incumbent.evaluation
    if found is not None and _is_comparable(found, images, gallery_images, settings):
        return load_query_results(found.path), read_metrics(found.path)
    folder = group.broadcast(lambda: _extract_model(incumbent, output))
    try:
        embed_gallery(
            folder / MODEL, gallery_images.artifact.path, folder / "gallery", embed_settings,
            group=group,
        )  # fmt: skip
        model = load_model(folder / MODEL, embed_settings.device)
        embeddings = Gallery(folder / "gallery")
        builder = build_node({"dim": None, **incumbent.index})  # older versions record no `dim`
        index, _ = builder.build(embeddings)
        threshold = float(json.loads(incumbent.read_file(LABELS))["threshold"])
        model, setup, label_C = make_setup(
            images, gallery_images, embeddings, model, index, builder.dim, settings, threshold
        )
        states = group.gather(
            partial(evaluate_part, model, images, label_C, setup, embed_settings, group)
        )
        if states is None:
            return None
        result = compute_evaluation(states, setup)
        return result.per_query, result.metrics
    finally:
        if group.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _is_comparable(
    evaluation: Artifact, images: Store, gallery_images: Store, settings: EvaluateSettings
) -> bool:
    """Return whether an evaluation has the same queries, gallery images and settings."""
    before, now = dict(evaluation.config["evaluate"]), asdict(settings)
    before.pop("gate"), now.pop("gate")
    return (
        FILE in evaluation.files
        and gallery_images is images
        and evaluation.parents["store"] == images.artifact.sha256
        and evaluation.parents.get("pairs") == hash_pair_lists(settings.pairs)
        and before == now
    )


def _extract_model(incumbent: Incumbent, output: Path) -> Path:
    """Write model.pt to a new temporary folder next to `output`, and return the folder."""
    remove_abandoned(output)
    folder = temporary_sibling(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL).write_bytes(incumbent.read_file(MODEL))
    return folder
