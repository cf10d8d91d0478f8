"""The chain of steps of each verb, and the summary that is printed after the evaluation."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.config.composition import build, parse_overrides
from arcloop.display.terminal import print_line
from arcloop.errors import ArtifactError, ConfigError, DataError, write_error
from arcloop.pipeline import steps
from arcloop.pipeline.summary import OTHER_DATA, measurements, print_summary
from arcloop.pipeline.sweeps.record import run_of_job

if TYPE_CHECKING:
    from arcloop.data import Source

_UP_TO_TRAIN = ("prepare", "validate", "train")
CHAINS: Mapping[str, tuple[str, ...]] = {
    "prepare": _UP_TO_TRAIN[:1],
    "validate": _UP_TO_TRAIN[:2],
    "train": _UP_TO_TRAIN,
    # The callbacks of `train` make these artifacts. If the run is already trained, the steps update
    # artifacts whose settings have changed.
    "run": (*_UP_TO_TRAIN, *steps.AFTER_TRAINING),
    **{name: (name,) for name in (*steps.AFTER_TRAINING, "export")},
}
"""Verb -> its steps, in order. A step is skipped if its artifact is up to date."""
FROM_RUN = (*steps.AFTER_TRAINING, "export")
"""Verbs that work on a finished run and start from its recorded overrides."""


@dataclass(frozen=True)
class VerbResult:
    """Result of a verb.

    Attributes:
        objective: Best value of the monitored metric on val; None if nothing was trained.
        gate_passed: Decision of the gate; None if nothing was evaluated.
        metrics: Name -> value: metrics of the query split, sizes and times of what was made; empty
            if a model was trained, whose metrics are in its evaluation.
        reused: All artifacts existed already, with the same settings and parents.
    """

    objective: float | None = None
    gate_passed: bool | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    reused: bool = False


def run_verb(
    verb: str,
    config: DictConfig,
    overrides: Sequence[str],
    *,
    in_sweep: bool = False,
    output: Path | None = None,
) -> VerbResult:
    """Run the steps of a verb with a composed and checked config.

    Args:
        verb: A key of `CHAINS`.
        config: The config.
        overrides: Overrides that the config was composed from; a run records them.
        in_sweep: Run a job of a sweep: artifacts that are up to date are kept, and `index` is
            followed by an evaluation, so that indexes can be compared.
        output: Folder for what a verb of `FROM_RUN` makes; None: the folder of the run.

    Raises:
        ArcloopError: The config or the data is invalid, or a resource is not available.
    """
    names = CHAINS[verb]
    if in_sweep and verb == "index":
        names = ("index", "evaluate")
    _check_folders(config)
    steps.dry_run(config, names)
    run_dir = Path(config.run_dir)
    folders = {
        **_store_folders(config, names, run_dir),
        "run": run_dir,
        "gallery": run_dir / "gallery",
        "index": run_dir / "index",
        "evaluation": run_dir / "evaluation",
        "export": run_dir / "export",
    }
    if output is not None:
        folders |= {kind: output / kind for name in names if (kind := steps.ALL_STEPS[name].output)}
    extra: dict[str, Path] = {}
    if verb == "evaluate":
        other, extra = _other_data(config, run_dir, overrides, output or run_dir)
        folders |= other
        names = ("embed", "evaluate") if "gallery" in other else names
    elif verb == "export":  # only some formats need the store
        with contextlib.suppress(ArtifactError):
            extra = {"store": find_store(run_dir)}
    outputs: dict[str, Artifact] = {}
    written = {name: _written(folders[steps.ALL_STEPS[name].output]) for name in names}
    for name in names:
        step = steps.ALL_STEPS[name]
        inputs = {role: folders[role] for role in step.inputs} | extra
        reuse = in_sweep or name != verb  # alone, the step with the name of the verb always runs
        outputs[name] = steps.apply(
            name, config, inputs, folders[step.output], overrides, reuse=reuse
        )
    reused = all(written[n] == _written(a.path) is not None for n, a in outputs.items())
    objective = outputs["train"].info["objective"] if "train" in outputs else None
    metrics = {} if "train" in outputs else measurements(outputs.values(), folders)
    if "evaluate" in outputs:
        print_summary(folders)
        passed = outputs["evaluate"].info["gate"]["passed"]
        return VerbResult(objective, passed, metrics, reused)
    for artifact in outputs.values():
        print_line(f"{artifact.kind}: {artifact.path}")
    return VerbResult(objective, None, metrics, reused)


def _written(folder: Path) -> int | None:
    """Return when an artifact was written, in nanoseconds; None if it does not exist."""
    with contextlib.suppress(OSError):
        return (folder / artifacts.MANIFEST).stat().st_mtime_ns
    return None


def _check_folders(config: DictConfig) -> None:
    """Check that the folders of the config are not files, and that their paths are possible."""
    for key in ("run_dir", "stores_dir", "store_dir"):
        folder = Path(config[key] or ".")
        # The system does not check a name whose parent does not exist, so names are checked alone.
        for path in (f"{folder}/.", *folder.parts):
            try:
                os.lstat(path)
            except FileNotFoundError:
                continue
            except OSError as cause:
                raise write_error(f"{key}={folder}", cause) from None


def _store_folders(config: DictConfig, names: Sequence[str], run_dir: Path) -> dict[str, Path]:
    if not any("store" in steps.ALL_STEPS[name].inputs for name in names) and names != ("prepare",):
        return {}
    store = store_path(config) if "prepare" in names else find_store(run_dir)
    return {"store": store, "validation": store / "validation"}


def _other_data(
    config: DictConfig, run_dir: Path, overrides: Sequence[str], output: Path
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Prepare the data that were passed to `evaluate` of a run that was trained on other data.

    Returns:
        The folders that are not those of the run, and the additional inputs of `evaluate`. Both
        are empty if no data were passed, or if they are those of the run.

    Raises:
        ConfigError: The images have another shape than those of the model, or there is no gallery.
        DataError, ArtifactError: The data do not exist or cannot be read.
    """
    run = artifacts.read(run_dir, "run")
    new = [override for override in overrides if override not in run.info.get("overrides", ())]
    keys = [override.key_or_group for override in parse_overrides(new)]
    given = {key for key in keys if key.partition(".")[0] in ("data", "store_dir")}
    if not given:
        return {}, {}
    store = _other_store(config, run_dir, given)
    if store.sha256 == run.parents["store"]:
        return {}, {}
    in_run_gallery = config.evaluate.gallery == "run"
    folder = output / OTHER_DATA / (store.path.name + ("-in-run-gallery" if in_run_gallery else ""))
    found = {
        "store": store.path,
        "validation": store.path / "validation",
        "evaluation": folder / "evaluation",
    }
    if in_run_gallery:
        return found, {"gallery_store": find_store(run_dir)}
    if not store.info["splits"]["gallery"]["rows"]:
        raise ConfigError(
            "the data have no gallery",
            where=store.path,
            remedy="add a gallery, or compare with the gallery of the run: evaluate.gallery=run",
        )
    return found | {"gallery": folder / "gallery"}, {"index_of_run": run_dir / "index"}


def _other_store(config: DictConfig, run_dir: Path, given: Collection[str]) -> Artifact:
    """Prepare the data, or open the store, to which the keys `given` refer.

    Image files are prepared in the size that the model takes. All of them are evaluated, unless
    they have splits or data.split is given.
    """
    from arcloop.data import PictureSource, prepare, store_key
    from arcloop.retrieval import load_model

    image_shape = load_model(run_dir / "model.pt", "cpu").image_shape
    store_dir = Path(config.store_dir) if "store_dir" in given else None
    if store_dir and given == {"store_dir"}:
        store = artifacts.load(store_dir, "store")
        _require_shape(store.info["image_shape"], image_shape, given)
        return store
    source = build(config, "data")
    # The store of the run was moved, or the data cannot be split like those of the run.
    with contextlib.suppress(ArtifactError, DataError):
        own = artifacts.load(find_store(run_dir), "store")
        if own.info["key"] == store_key(source):
            return own
    if isinstance(source, PictureSource):
        height, width, channels = image_shape
        derived: dict[str, Any] = {
            "image_size": [height, width],
            "channels": channels,
            "split": "evaluation",
        }
        changed = {key: value for key, value in derived.items() if f"data.{key}" not in given}
        source = dataclasses.replace(source, **changed)
    _require_shape(source.open().image_shape, image_shape, given)
    return prepare(source, store_dir or _default_store(config, source))


def _require_shape(
    shape: Sequence[int], image_shape: Sequence[int], given: Collection[str]
) -> None:
    if list(shape) != list(image_shape):
        height, width, channels = image_shape
        raise ConfigError(
            f"the images have shape {list(shape)}, but the model takes {list(image_shape)} (height,"
            " width, channels)",
            where=", ".join(sorted(given)),
            remedy=f"prepare them with data.image_size=[{height},{width}] data.channels={channels}",
        )


def store_path(config: DictConfig) -> Path:
    """Return the folder of the store for this config; it need not exist.

    Raises:
        ConfigError, DataError: The source does not exist.
    """
    if config.store_dir is not None:
        return Path(config.store_dir)
    return _default_store(config, build(config, "data"))


def _default_store(config: DictConfig, source: Source) -> Path:
    from arcloop.data import store_key

    return Path(config.stores_dir) / f"{source.name}-{store_key(source)}"


def find_parent_folder(role: str, folder: Path) -> Path:
    """Return the folder with a parent of an artifact in `folder`: this one, or that of its run."""
    if artifacts.exists(folder / role):
        return folder
    if folder.parent.name == OTHER_DATA:
        return find_parent_folder(role, folder.parent.parent)
    return run_of_job(folder) or folder


def find_store(run_dir: Path, other: Artifact | None = None) -> Path:
    """Return the store that a run was trained on, identified by its hash.

    The recorded folder of the stores may be relative. It is searched for in the current directory
    and in the directory in which the run was made.

    Args:
        run_dir: The run.
        other: An evaluation of other data, whose store is returned instead.

    Raises:
        ArtifactError: The run does not exist, or its store was moved or removed.
    """
    run = artifacts.load(run_dir, "run")
    sha256 = (other or run).parents["store"]
    named = other.info["store_dir"] if other else run.config["store_dir"]
    folder = Path(named).parent if named else Path(run.config["stores_dir"])
    made_in = run_dir.resolve()
    for _ in Path(run.config["run_dir"]).parts:
        made_in = made_in.parent
    for root in (Path(), made_in):
        if found := artifacts.find_by_hash(root / folder, "store", sha256):
            return found
    raise ArtifactError(
        f"the store of {(other or run).path} ({sha256[:12]}...) was not found",
        where=folder,
        remedy="run `arcloop prepare` with the overrides of the run, in the directory where it was"
        " trained",
    )
