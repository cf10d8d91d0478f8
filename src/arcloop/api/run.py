"""`load`, which returns a finished run, and what a caller can do with it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from arcloop import artifacts
from arcloop.api.answers import Answer, Match
from arcloop.api.images import Images, read_batches
from arcloop.artifacts.metrics import read_metrics
from arcloop.config.composition import build
from arcloop.config.paths import quote_paths
from arcloop.config.project import project_of
from arcloop.config.recorded import compose_for_run
from arcloop.errors import ArtifactError, ConfigError, user_errors
from arcloop.pipeline.chains import find_store, run_verb

if TYPE_CHECKING:
    from arcloop.data import Store
    from arcloop.pipeline.compare_runs import RunComparison
    from arcloop.runtime.prediction import Prediction
    from arcloop.runtime.searcher import Model, Searcher


def load(path: str | os.PathLike[str], *, device: str = "auto") -> Run:
    """Load a finished run, or a folder that `arcloop push` wrote.

    The hashes of its files are verified. Model, index and store of a run are opened when they are
    first needed.

    Args:
        path: Folder of the run, e.g. runs/shop, or runs/sweeps/shop/best; or a folder in the layout
            of the Hugging Face Hub, which has no store and no gate, and cannot be exported.
        device: Device of the model: a device of torch, or "auto": cuda if available, else cpu.

    Raises:
        ArtifactError: There is no run in the folder, or a file is missing or was changed.
        ConfigError: The device is not available.
    """
    with user_errors():
        folder = artifacts.without_link(Path(path)).absolute()
        if not artifacts.exists(folder) and (folder / "config.json").is_file():
            from arcloop.export.hub import is_hub_folder

            if is_hub_folder(folder):
                return _load_hub(folder, device)
        if not artifacts.exists(folder) and (folder / "best").is_dir():
            raise ArtifactError(
                "this is the folder of a sweep, not a run",
                where=folder,
                remedy=f"load one of its runs, e.g. {folder / 'best'}",
            )
        return Run(folder, artifacts.load(folder, "run").config, device)


def _load_hub(folder: Path, device: str) -> Run:
    from arcloop.export.hub import read_hub

    with project_of(()):  # which may have the class of the network
        hub = read_hub(folder, device)
    run = Run(folder, hub.config, device)
    run.model, run.metrics, run.classes = hub.model, dict(hub.metrics), hub.classes
    if hub.searcher is not None:
        run.searcher = hub.searcher
    return run


class Run:
    """A finished run. `load` and `fit` return it.

    Attributes:
        path: Absolute path of its folder.
        config: The resolved config that it was trained with.

    Args:
        path: The folder, whose hashes were verified.
        config: The config.
        device: Device of the model, or "auto".
    """

    def __init__(self, path: Path, config: Mapping[str, Any], device: str = "auto") -> None:
        self.path, self.config, self._device = path, config, device

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The metrics of the query split by name, e.g. `recall_at_1`.

        Raises:
            ArtifactError: The run was not evaluated, or its evaluation is damaged.
        """
        evaluation = artifacts.load(self.path / "evaluation", "evaluation")
        return read_metrics(evaluation.path)

    @cached_property
    def gate(self) -> dict[str, Any]:
        """The decision of the gate: `passed`, and `reasons`, a sentence for each bound.

        Raises:
            ArtifactError: The run was not evaluated, or its evaluation is damaged.
        """
        evaluation = artifacts.load(self.path / "evaluation", "evaluation")
        decision = json.loads((evaluation.path / "gate.json").read_bytes())
        return {name: decision[name] for name in ("passed", "reasons")}

    @cached_property
    def classes(self) -> list[str]:
        """The names of the classes; a label is a position in this list.

        Raises:
            ArtifactError: The run has no index, and its store was not found.
        """
        if artifacts.exists(self.path / "index"):
            return self.searcher.classes
        return self.store.classes

    @cached_property
    def model(self) -> Model:
        """The model, which takes decoded images of its `image_shape`.

        Raises:
            ConfigError: The device is not available.
        """
        from arcloop.retrieval import load_model

        return load_model(self.path / "model.pt", self._device)

    @cached_property
    def searcher(self) -> Searcher:
        """The index with its labels and threshold.

        Raises:
            ArtifactError: The run has no index, or it is damaged or of another model.
        """
        from arcloop.retrieval import open_index
        from arcloop.runtime.searcher import Searcher

        if not artifacts.exists(self.path):  # of the Hub
            raise ArtifactError(
                "the folder has no index", where=self.path, remedy="push the run with --index"
            )
        artifacts.load(self.path / "index", "index")  # before the model, which takes longer
        _, index, labels = open_index(self.path / "index", self.model.sha256)
        return Searcher(self.model, index, labels)

    @cached_property
    def store(self) -> Store:
        """The images that the run was trained and evaluated on.

        Raises:
            ArtifactError: The store was moved or removed, or is damaged.
        """
        from arcloop.data import Store

        return Store.open(find_store(self.path))

    def embed(self, images: Images) -> npt.NDArray[np.float32]:
        """Embed images, in batches: memory is needed for one batch and for the result.

        Images are decoded and resized as all servers of the run do it. The pixels of a large JPEG
        file are reduced while it is decoded, so its path and the image that Pillow reads from it
        have slightly different embeddings; a server gives that of the path.

        Args:
            images: One image or an iterable of images, such as a list or a generator. An image is
                a path, the bytes of a file, an image of Pillow, or a uint8 array [H, W] or
                [H, W, C] of any size, with C = 1, 3 or 4 (RGBA). An array [N, H, W, C] is N images.

        Returns:
            float32 [N, D], one row of norm 1 per image.

        Raises:
            DataError: Something is not an image; the message says which.
            ConfigError: The device is not available.
        """
        parts = [self.model.embed(batch_NHWC) for batch_NHWC in read_batches(images, self.model)]
        return np.concatenate([np.empty((0, self.model.embedding_dim), np.float32), *parts])

    def search(self, images: Images, k: int = 10) -> list[Answer]:
        """Find the class and the nearest gallery images of each image.

        Args:
            images: One image or an iterable of images, as for `embed`.
            k: Number of neighbours, from 1 to the number of gallery rows.

        Returns:
            One answer per image, in order; also for one image, this is a list.

        Raises:
            ArtifactError: The run has no index, or it is damaged.
            ConfigError: k is out of range, or the device is not available.
            DataError: Something is not an image; the message says which.
        """
        searcher = self.searcher
        if not (isinstance(k, int | np.integer) and 1 <= k <= len(searcher.labels)):
            raise ConfigError(
                f"k={k} is not an integer from 1 to {len(searcher.labels)}, the number of rows of"
                " the gallery",
                where=self.path,
                remedy="pass another k",
            )
        return [
            self._answer(found, searcher.threshold)
            for batch_NHWC in read_batches(images, self.model)
            for found in searcher.predict(batch_NHWC, int(k))
        ]

    def _answer(self, found: Prediction, threshold: float) -> Answer:
        matches = (Match(**vars(one), **self._describe(one.row)) for one in found.neighbours)
        return Answer(**{**vars(found), "neighbours": tuple(matches)}, threshold=threshold)

    def _describe(self, row: int) -> dict[str, Any]:
        """Return `file` and `metadata` of a gallery row; empty if the store was not found."""
        return self._store_or_none.describe("gallery", row) if self._store_or_none else {}

    @cached_property
    def _store_or_none(self) -> Store | None:
        try:
            return self.store
        except ArtifactError:
            return None

    def compare(self, other: Run | str | os.PathLike[str]) -> RunComparison:
        """Compare this run with another one, as `arcloop compare` does.

        Args:
            other: Another run, or its folder. Differences are those of `other` minus this run.

        Returns:
            The metrics with 95% intervals of their differences on the same queries, the queries
            whose answers differ, and the differences of config, size and speed. `as_dict()` returns
            all of it as plain types.

        Raises:
            ArtifactError: A run was not evaluated, is damaged, or was evaluated on other queries.
        """
        from arcloop.pipeline.compare_runs import compare_runs

        run_a = _run_dir(self)
        return compare_runs(run_a, _run_dir(other if isinstance(other, Run) else load(other)))

    def export(self, format: str) -> Path:  # noqa: A002 - the name of the config group
        """Export the model to another format, as `arcloop export export=FORMAT` does.

        The files replace those of an earlier export of this run. Each is compared with the model.

        Args:
            format: A choice of the config group `export`, e.g. "onnx" or "torch_export".

        Returns:
            Path of the file; of the folder with the files for a choice of several formats.

        Raises:
            ConfigError: There is no such choice, or the format cannot express the model.
            ArtifactError: The embeddings of the file differ from those of the model, or the folder
                contains a model that `arcloop push` wrote.
        """
        overrides = [*quote_paths([f"run_dir={_run_dir(self)}"]), f"export={format}"]
        with user_errors(), project_of(()):
            from arcloop.export import extra_formats

            config = compose_for_run(overrides)
            run_verb("export", config, overrides)
            files = [one.file for one in extra_formats(build(config, "export")).values()]
        folder = self.path / "export"
        return folder / files[0] if len(files) == 1 else folder


def _run_dir(run: Run) -> Path:
    """Return the folder of a run, if it is not one that `arcloop push` wrote."""
    if not artifacts.exists(run.path):
        raise ArtifactError(
            "this folder has a pushed model, without the evaluation and config of its run",
            where=run.path,
            remedy="load the run that was pushed",
        )
    return run.path
