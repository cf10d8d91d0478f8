"""`arcloop check-labels RUN_DIR`: list the images whose nearest images have another label.

The images of the run's store are divided into folds. For each fold, a model is trained without its
images, with the settings of the run. The images of the fold are then compared with those that the
model was trained on. So no image is checked by a model that was trained on its label.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from omegaconf import DictConfig, open_dict

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.writer import write_artifact
from arcloop.config.composition import build
from arcloop.config.plugins import naming_missing_plugins
from arcloop.config.project import use_project_of_run
from arcloop.display.terminal import print_line
from arcloop.errors import ConfigError, DataError
from arcloop.pipeline import steps
from arcloop.pipeline.chains import find_store
from arcloop.pipeline.reproduce import recorded_config

if TYPE_CHECKING:
    from arcloop.evaluation.label_issues import LabelIssues

KIND = "label_check"
_NEEDLESS_CALLBACKS = ("build_index", "evaluate", "tensorboard")


def check_labels(arguments: Sequence[str]) -> int:
    """Train a model for each fold, and write label_issues.csv and report.html.

    Raises:
        ConfigError: There are fewer than two folds.
        DataError: No class has enough images.
        ArtifactError: The run is damaged, or its store was moved or removed.
    """
    parser = argparse.ArgumentParser("arcloop check-labels", description=__doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a finished run")
    parser.add_argument("--folds", type=int, default=5, help="models to train (default 5)")
    parser.add_argument("--top", type=int, default=200, help="images on the page (default 200)")
    parser.add_argument("--output", metavar="DIR", help="folder to write (default RUN_DIR-labels)")
    options = parser.parse_args(arguments)
    if options.folds < 2 or options.top < 0:
        raise ConfigError(
            f"--folds={options.folds} --top={options.top}: there must be at least 2 folds, and at"
            " least 0 images on the page",
            remedy="correct the option",
        )
    run = artifacts.load(artifacts.without_link(Path(options.run_dir)), "run")
    use_project_of_run(run.info, run.path)
    output = Path(options.output or f"{run.path}-labels")
    store = find_store(run.path)
    from arcloop.data import Store
    from arcloop.data.sources.store_fold import MIN_IMAGES, StoredImages, assign_folds
    from arcloop.evaluation.label_issues import join_issues
    from arcloop.evaluation.report.label_issues import write_label_issues

    images = StoredImages(Store.open(store))
    fold_N = assign_folds(images.labels, options.folds)
    left_out = (
        f"{(fold_N < 0).sum():,} images are not checked, because their classes have fewer than"
        f" {MIN_IMAGES} images"
        if (fold_N < 0).any()
        else ""
    )
    if (fold_N < 0).all():
        raise DataError(left_out, where=store, remedy="add images")
    if left_out:
        print_line(f"check-labels: {left_out}")
    parents = {"store": images.store.artifact.sha256}
    settings = {"folds": options.folds, "top": options.top}
    with write_artifact(output, KIND, config=settings, parents=parents) as writer:
        found = []
        for fold in range(options.folds):
            print_line(
                f"check-labels: fold {fold + 1} of {options.folds}:"
                f" {(fold_N == fold).sum():,} images are held out"
            )
            with TemporaryDirectory(dir=writer.path, prefix=".fold-") as folder:
                found.append(_check_fold(run, store, fold, options.folds, Path(folder)))
        issues = join_issues(found)
        writer.count = int((fold_N >= 0).sum())
        writer.info |= {"issues": len(issues.numbers), "left_out": left_out}
        write_label_issues(
            writer.path, issues, images, title=run.path.name, top=options.top,
            checked=writer.count, folds=options.folds, left_out=left_out,
        )  # fmt: skip
    print_line(
        f"check-labels: the nearest image has another label for {len(issues.numbers):,} of"
        f" {writer.count:,} images; the page begins with the most suspicious ones"
    )
    print(output / "report.html")
    return 0


def _check_fold(run: Artifact, store: Path, fold: int, folds: int, folder: Path) -> LabelIssues:
    """Train without a fold and compare its images with those that were trained on."""
    from arcloop.data import prepare
    from arcloop.data.sources.store_fold import FoldListing, StoreFold
    from arcloop.evaluation.label_issues import find_label_issues
    from arcloop.retrieval import Gallery
    from arcloop.retrieval.embed import embed_gallery

    made = artifacts.read(store, "store").config
    same = {"shard_rows", "encoding", "jpeg_quality", "val_classes", "test_classes"}
    source = StoreFold(
        name=f"fold-{fold}", store_dir=str(store), fold=fold, folds=folds, split="stratified",
        **{name: made[name] for name in same},
    )  # fmt: skip
    prepare(source, folder / "store")
    config = _fold_config(run, folder / "run")
    steps.apply("train", config, {"store": folder / "store"}, folder / "run")
    model, settings = folder / "run/model.pt", build(config, "embed")
    embeddings = {}
    for split in ("gallery", "train"):
        embed_gallery(model, folder / "store", folder / split, settings, split=split)
        embeddings[split] = Gallery(folder / split).chunks
    numbers = FoldListing(source).numbers
    return find_label_issues(
        embeddings["gallery"], numbers["gallery"], embeddings["train"], numbers["train"],
        source.images.labels,
    )  # fmt: skip


def _fold_config(run: Artifact, run_dir: Path) -> DictConfig:
    """Return the config of the run for a fold: export only model.pt, hold out no classes.

    The checkpoint is selected by the training loss, because there are no images to select it with:
    those of the fold must not be used, and all others are trained on.
    """
    with naming_missing_plugins(run.info):
        config = recorded_config(run.info["overrides"], run.config, run_dir)
    with open_dict(config):
        config.monitor, config.monitor_mode = "train_loss", "min"
        config.calibration.held_out_classes = 0
        path = str(run_dir / "metrics.csv")
        config.logger = {"csv": {"_target_": "arcloop.training.CsvLogger", "path": path}}
        for name in _NEEDLESS_CALLBACKS:
            config.callbacks[name] = None
        for name in config.export:
            config.export[name] = config.export[name] if name == "torchscript" else None
    return config
