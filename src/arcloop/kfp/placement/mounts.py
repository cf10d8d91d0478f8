"""The volumes of each task, and the check that the paths in the config are on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Any

from arcloop.kfp.config import ClusterSettings

_IN_IMAGE = PurePosixPath("/opt/arcloop")
"""Folder of the image with the code and the bundled data."""
_PATHS = {
    "data.root": "prepare", "data.file": "prepare", "backbone_weights.file": "train",
    "calibration.unknown": "index", "evaluate.gate.versus": "evaluate",
    "evaluate.pairs": "evaluate",
}  # fmt: skip
"""Key with a path, or a list of paths, that must exist -> the step that reads it."""


def mounts(name: str, settings: ClusterSettings) -> dict[str, str]:
    """Return claim -> mount path of the volumes of a task.

    Args:
        name: Name of the task.
        settings: The cluster.
    """
    if settings.platform == "vertex":
        return {"every bucket": "/gcs"}
    volumes: dict[str, str] = {}
    if name in ("compute_fingerprint", "prepare"):
        volumes |= settings.data_volumes
    # The model store, which deploy writes, outlives the pod. `evaluate` can compare with it.
    uses_store = name in ("evaluate", "deploy", "register") and not settings.is_local
    if settings.storage == "pvc" or uses_store:
        volumes[settings.volume.claim] = settings.volume.mount
    if name in ("train", "clean") and settings.checkpoints and settings.storage == "artifacts":
        volumes[settings.checkpoints.claim] = settings.checkpoints.mount
    return volumes


def path_faults(
    config: Mapping[str, Any], parameters: Mapping[str, Sequence[str]], settings: ClusterSettings
) -> Iterator[str]:
    """Yield the paths in the config that do not exist in the pods of the steps.

    Args:
        config: The resolved config.
        parameters: Pipeline parameter -> overrides; a path that is not among them is the default.
        settings: The cluster.
    """
    if settings.is_local:
        return
    for key, step in _PATHS.items():
        found = _find(config, key)
        # The default of data.root is the path of the bundled data, which differs in the image.
        is_given = any(o.lstrip("+").startswith(f"{key}=") for o in parameters[key.split(".")[0]])
        for path in found if isinstance(found, list) else [found]:
            if path and is_given and (fault := _fault(str(path), mounts(step, settings))):
                where = f"{key}={path} {fault} (step {step})"
                yield f"{where}; see cluster.data_volumes and cluster.volume"
    serves = config["deploy"]["target"] != "local"
    if serves and config["deploy"]["namespace"] == "default" != settings.namespace:
        yield "deploy.namespace must be the namespace of the run: set it or cluster.namespace"
    store = str(config["deploy"]["model_store"])
    is_below_mount = not store.startswith("/") and settings.platform == "kubernetes"
    if not is_below_mount and (fault := _fault(store, mounts("deploy", settings))):
        yield f"deploy.model_store={store} {fault} (step deploy)"


def derive_serving(
    config: Mapping[str, Any], settings: ClusterSettings, overrides: Sequence[str]
) -> list[str]:
    """Return the overrides with which the pods of `deploy=kserve` find the archive.

    They mount the volume that the deploy step writes to, so they are in the namespace of the run.

    Args:
        config: The resolved config.
        settings: The cluster.
        overrides: The user's overrides; those of `deploy` among them are kept.
    """
    deploy, mount = config["deploy"], PurePosixPath(settings.volume.mount)
    given = {override.partition("=")[0] for override in overrides}
    store = mount / deploy["model_store"]
    wanted = {
        "namespace": settings.namespace,
        "model_claim": settings.volume.claim,
        "model_claim_path": str(store.relative_to(mount)) if store.is_relative_to(mount) else None,
    }
    if settings.is_local or deploy["target"] == "local":
        return []
    derived = {f"deploy.{key}": value for key, value in wanted.items() if value}
    return [f"{key}={value}" for key, value in derived.items() if key not in given]


def _find(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _fault(path: str, volumes: Mapping[str, str]) -> str | None:
    if not path.startswith("/"):
        return "must be an absolute path in the pods of the steps"
    places = [*map(PurePosixPath, volumes.values()), _IN_IMAGE]
    if any(PurePosixPath(normpath(path)).is_relative_to(place) for place in places):
        return None
    named = ", ".join(volumes.values()) or "nothing"
    return f"is outside every mount: {named}"
