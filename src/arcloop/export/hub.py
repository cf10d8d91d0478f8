"""A model in the layout of the Hugging Face Hub: config.json, model.safetensors, README.md.

A folder may also contain index/, an artifact of kind `index`, so that it answers queries. Loading
unpickles nothing: weights are read with safetensors, and config.json names classes of networks and
their arguments.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from arcloop import artifacts
from arcloop.artifacts.atomic import sha256_file, write_json
from arcloop.artifacts.writer import package_versions
from arcloop.config.composition import build_node
from arcloop.config.project import project_of
from arcloop.errors import ArtifactError, ConfigError, first_line
from arcloop.export.torchscript import for_inference
from arcloop.models import Embedder
from arcloop.models.embedder import make_embedder
from arcloop.retrieval import open_index
from arcloop.retrieval.embed import choose_device
from arcloop.runtime.searcher import Model, Searcher

CONFIG, WEIGHTS, CARD, INDEX_FOLDER = "config.json", "model.safetensors", "README.md", "index"
_KEYS = (
    "arcloop_version", "model_sha256", "weights_sha256", "quality", "image_shape", "embedding_dim",
)  # fmt: skip


class EagerModel(Model):
    """A model of a hub folder, whose network is built from classes instead of TorchScript.

    Args:
        embedder: The network, in evaluation mode.
        facts: config.json.
        device: A torch device.
    """

    def __init__(self, embedder: Embedder, facts: Mapping[str, Any], device: str) -> None:
        self._read_sizes(facts)
        self.sha256 = str(facts["model_sha256"])  # of model.pt, which the index refers to
        self.has_quality = bool(facts["quality"])
        self.device = torch.device(device)
        embedder = embedder.to(self.device)
        self._module: Any = embedder.embed_with_norm if self.has_quality else embedder


@dataclass(frozen=True)
class HubFolder:
    """The content of a hub folder.

    Attributes:
        model: The model, with the methods of `Model`.
        searcher: Answers queries; None if the folder has no index.
        config: Training settings, by config group.
        metrics: Name -> value, on the query split of the run; empty if it was not evaluated.
        classes: Class names by label; empty if the folder has no index.
    """

    model: Model
    searcher: Searcher | None
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    classes: list[str]


def is_hub_folder(folder: Path) -> bool:
    """Return whether a folder was written by `arcloop push` or downloaded from the Hub."""
    try:
        facts = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and facts.get("library_name") == "arcloop"


def write_weights(
    folder: Path, model: Model, scripted: torch.jit.ScriptModule, nodes: Mapping[str, Any]
) -> None:
    """Write config.json and model.safetensors.

    Args:
        folder: Existing folder for the files.
        model: The model of the run.
        scripted: Its network.
        nodes: "backbone" and "embedder", `_target_` nodes of the run's config; "config", its other
            settings; and "metrics", see `HubFolder`.

    Raises:
        ConfigError: A class of the nodes cannot be imported, or is not a network.
    """
    _require_networks(nodes, folder)
    state = {name: value.contiguous().clone() for name, value in scripted.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(state, {"format": "pt"}))
    facts = {
        "library_name": "arcloop",
        "arcloop_version": package_versions()["arcloop"],
        "model_type": "arcloop",
        **model.sizes(),
        "quality": model.has_quality,
        "model_sha256": model.sha256,
        "weights_sha256": sha256_file(folder / WEIGHTS),
    }
    write_json(folder / CONFIG, facts | dict(nodes))


def read_hub(folder: Path, device: str = "auto") -> HubFolder:
    """Load a hub folder.

    Classes that it names are imported from installed packages and from the current project.

    Args:
        folder: A folder that `arcloop push` wrote, or a download of it from the Hub.
        device: A torch device, or "auto": cuda if available, else cpu.

    Raises:
        ArtifactError: A file is missing, damaged or does not belong to the others.
        ConfigError: A class that config.json names cannot be imported, or the device is not
            available.
    """
    device = choose_device(device)
    facts = _read_config(folder)
    with _damaged(folder / WEIGHTS):
        if sha256_file(folder / WEIGHTS) != facts["weights_sha256"]:
            raise ValueError("its hash is not that in config.json")
        state = load_file(folder / WEIGHTS)
    height, width, channels = facts["image_shape"]
    with project_of([]):  # its classes can be imported
        _require_networks(facts, folder)
        backbone, neck = build_node(facts["backbone"]), build_node(facts["embedder"])
        embedder = for_inference(make_embedder(backbone, neck, (height, width, channels)))
    with _damaged(folder / WEIGHTS):
        embedder.load_state_dict(state)
    model = EagerModel(embedder, facts, device)
    searcher = None
    if artifacts.exists(folder / INDEX_FOLDER):
        _, index, labels = open_index(folder / INDEX_FOLDER, model.sha256)
        searcher = Searcher(model, index, labels)
    return HubFolder(
        model=model,
        searcher=searcher,
        config={name: facts[name] for name in ("backbone", "embedder")} | facts.get("config", {}),
        metrics=facts.get("metrics", {}),
        classes=searcher.classes if searcher else [],
    )


def _read_config(folder: Path) -> dict[str, Any]:
    """Read and check config.json."""
    if not is_hub_folder(folder):
        raise ArtifactError(
            "config.json is not that of an arcloop model",
            where=folder,
            remedy="pass a folder that `arcloop push` wrote",
        )
    facts: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
    missing = [key for key in _KEYS if key not in facts]
    missing += [
        f"{n}._target_" for n in ("backbone", "embedder") if "_target_" not in facts.get(n, ())
    ]
    if missing:
        raise ArtifactError(
            f"config.json lacks {', '.join(missing)}",
            where=folder / CONFIG,
            remedy="push the run again: `arcloop push`",
        )
    return facts


def _require_networks(facts: Mapping[str, Any], folder: Path) -> None:
    """Check that the nodes name networks and dataclasses, before their constructors are called.

    Otherwise, a downloaded config.json could call any function.

    Raises:
        ConfigError: A class cannot be imported, or is neither a network nor a dataclass.
    """
    for name, base in (("backbone", nn.Module), ("embedder", Embedder)):
        for number, target in enumerate(_targets(facts[name])):
            found = _import_class(target, folder / CONFIG)
            is_class, is_nested = isinstance(found, type), number > 0
            if not is_class or not (
                issubclass(found, nn.Module if is_nested else base)
                or (is_nested and is_dataclass(found))
            ):
                raise ConfigError(
                    f"{name}: {target} is not a class of {base.__name__}",
                    where=folder / CONFIG,
                    remedy="pass a class: this layout does not support other constructors",
                )


def _targets(node: Any) -> Iterator[str]:
    """Yield the `_target_` of a node, then those of the nodes in it."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for child in node.values():
            yield from _targets(child)
    elif isinstance(node, list):
        for child in node:
            yield from _targets(child)


def _import_class(target: str, where: Path) -> Any:
    """Import what a `_target_` names. Hydra's function would also log the error."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as cause:  # noqa: BLE001 - the import of a module runs its code
        raise ConfigError(
            f"the class {target} cannot be imported: {first_line(cause)}",
            where=where,
            remedy="install the package with this class, or set ARCLOOP_PROJECT to the folder of"
            " the project that contains it",
        ) from None


@contextlib.contextmanager
def _damaged(file: Path) -> Iterator[None]:
    """Report a file that cannot be read or does not fit as one error."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as cause:
        raise ArtifactError(
            f"{file.name} cannot be used: {first_line(cause)}",
            where=file,
            remedy="copy or download the folder again, or push the run again: `arcloop push`",
        ) from None
