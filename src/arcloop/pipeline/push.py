"""`arcloop push RUN --to FOLDER`: write a run as a model of the Hugging Face Hub.

The folder has model.safetensors, config.json and a model card, README.md. `arcloop.load` reads it,
and with --repo it is uploaded.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import (
    is_empty,
    remove_abandoned,
    replace_folder,
    replaceable_folder,
    temporary_sibling,
)
from arcloop.artifacts.metrics import read_metrics
from arcloop.config.project import use_project_of_run
from arcloop.config.targets import require_extra
from arcloop.display.terminal import print_line
from arcloop.errors import ArcloopError, ArtifactError, ConfigError, ResourceError, first_line
from arcloop.export import hub
from arcloop.export.model_card import training_config, write_card
from arcloop.pipeline.chains import find_store
from arcloop.retrieval import load_model
from arcloop.runtime.golden_batch import GOLDEN
from arcloop.runtime.searcher import MODEL

_NAMES = {hub.CONFIG, hub.WEIGHTS, hub.CARD, hub.INDEX_FOLDER}
_MAX_DIFFERENCE = 1e-4  # of a coordinate, from the embeddings of golden.npz
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def push(arguments: Sequence[str]) -> int:
    """Write the folder, and upload it with `--repo`; return 0.

    Raises:
        ArtifactError: The run is missing or damaged, or the folder contains other files.
        ConfigError: An option is invalid, or huggingface_hub is not installed.
        ResourceError: The folder cannot be written, or the upload failed.
    """
    parser = argparse.ArgumentParser("arcloop push", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a finished run")
    parser.add_argument("--to", metavar="FOLDER", required=True, help="the folder to write")
    parser.add_argument("--index", action="store_true", help="add the index and the class names")
    parser.add_argument("--license", metavar="ID", help="license of the weights, e.g. apache-2.0")
    parser.add_argument(
        "--repo", metavar="USER/NAME", help="upload to this repository (extra `hub`)"
    )
    parser.add_argument("--private", action="store_true", help="create a private repository")
    options = parser.parse_args(arguments)
    if options.license is not None and not _LICENSE.fullmatch(options.license):
        raise ConfigError(
            f"{options.license!r} is not the identifier of a license",
            where="--license",
            remedy="pass one of https://huggingface.co/docs/hub/repositories-licenses, e.g."
            " apache-2.0 or other",
        )
    if options.repo is not None:
        if not _REPOSITORY.fullmatch(options.repo):
            raise ConfigError(
                f"{options.repo!r} is not the name of a repository",
                where="--repo",
                remedy="pass USER/NAME",
            )
        require_extra("hub", "huggingface_hub", where=f"--repo {options.repo}")
    folder = Path(options.to)
    write_hub_folder(
        Path(options.run), folder, with_index=options.index, license_id=options.license,
        repository=options.repo,
    )  # fmt: skip
    print_line(f"hub folder: {folder}")
    if options.license is None:
        print_line("without a license, others may not use the weights; --license ID states one")
    if options.repo is not None:
        _upload(folder, options.repo, private=options.private)
        print_line(f"uploaded: https://huggingface.co/{options.repo}")
    return 0


def write_hub_folder(
    run_dir: Path,
    folder: Path,
    *,
    with_index: bool = False,
    license_id: str | None = None,
    repository: str | None = None,
) -> None:
    """Write a run in the layout of the Hugging Face Hub, atomically.

    The folder is loaded again, and its embeddings of golden.npz must be those of the run.

    Args:
        run_dir: Folder of a finished run.
        folder: The folder to write. A folder that this function wrote is replaced.
        with_index: Add the index, which contains the names of the classes.
        license_id: Identifier of the license of the weights, e.g. "apache-2.0".
        repository: Name of a repository of the Hub, for the example of the card.

    Raises:
        ArtifactError: The run or its index is missing or damaged, the folder contains other files,
            or the embeddings differ.
        ConfigError: The model's classes cannot be imported or written to config.json.
    """
    run = artifacts.load(artifacts.without_link(run_dir), "run")
    use_project_of_run(run.info, run.path)
    model = load_model(run.path / MODEL, "cpu")
    index = artifacts.load(run.path / "index", "index") if with_index else None
    target = _target_folder(folder)
    temporary = temporary_sibling(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target)
        temporary.mkdir()
        scripted = torch.jit.load(str(run.path / MODEL), "cpu")  # type: ignore[no-untyped-call]
        embedder = {**run.config["embedder"], **run.info["normalisation"]}
        metrics = {}
        if artifacts.exists(run.path / "evaluation"):
            metrics = read_metrics(run.path / "evaluation")
        hub.write_weights(
            temporary,
            model,
            scripted,
            {
                "backbone": run.config["backbone"],
                "embedder": embedder,
                "config": training_config(run),
                "metrics": metrics,
            },
        )
        _require_same_embeddings(run, temporary)
        if index is not None:
            (temporary / hub.INDEX_FOLDER).mkdir()
            for file in (*index.files, artifacts.MANIFEST):
                shutil.copyfile(index.path / file, temporary / hub.INDEX_FOLDER / file)
        store = None
        with contextlib.suppress(ArcloopError):  # it was moved or removed
            store = artifacts.read(find_store(run.path), "store")
        write_card(
            temporary / hub.CARD, run, model, store=store, license_id=license_id,
            folder=target.name, repository=repository, has_index=with_index,
        )  # fmt: skip
        replace_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _target_folder(folder: Path) -> Path:
    """Return the folder to replace, after checking that it has no other files.

    Raises:
        ArtifactError: It has other files.
    """
    target = replaceable_folder(folder)
    if target.exists() and not is_empty(target):
        others = sorted({path.name for path in target.iterdir()} - _NAMES)
        if others or not hub.is_hub_folder(target):
            what = f"contains {others[0]}" if others else "was not written by `arcloop push`"
            raise ArtifactError(
                f"refusing to replace a folder that {what}",
                where=folder,
                remedy="choose another folder, or empty this one",
            )
    return target


def _require_same_embeddings(run: Artifact, folder: Path) -> None:
    """Load the folder and compare its embeddings with those of the run."""
    with np.load(run.path / GOLDEN) as golden:
        found_ND = hub.read_hub(folder, "cpu").model.embed(golden["images"])
        difference = float(np.abs(found_ND - golden["embeddings"]).max())
    if not difference <= _MAX_DIFFERENCE:
        raise ArtifactError(
            f"the classes of this version give other embeddings than model.pt, by {difference:.2e}",
            where=run.path,
            remedy="push with the arcloop version in the manifest of the run",
        )


def _upload(folder: Path, repository: str, *, private: bool) -> None:
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(repository, private=private, exist_ok=True)
        HfApi().upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Upload the model with arcloop",
            ignore_patterns=["**/.*", ".*"],
        )
    except Exception as cause:  # its errors have no common base
        raise ResourceError(
            f"the upload failed: {first_line(cause)}",
            where=f"--repo {repository}",
            remedy=f"log in with `hf auth login` and repeat the command; {folder} is complete",
        ) from cause
