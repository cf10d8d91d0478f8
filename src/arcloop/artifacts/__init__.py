"""Artifacts: folders with a `manifest.json` that is written last and verified on load."""

from arcloop.artifacts.artifact import (
    MANIFEST,
    SCHEMA,
    Artifact,
    exists,
    find_by_hash,
    list_artifacts,
    load,
    load_if_current,
    read,
)

__all__ = [
    "MANIFEST", "SCHEMA", "Artifact", "exists", "find_by_hash", "list_artifacts", "load",
    "load_if_current", "read",
]  # fmt: skip
