"""Artifacts: folders whose `manifest.json` is written last and verified on load."""

from arcloop.artifacts.artifact import (
    MANIFEST,
    SCHEMA,
    Artifact,
    among,
    current,
    exists,
    find,
    load,
    read,
    read_stamp,
    write_stamp,
)

__all__ = [
    "MANIFEST", "SCHEMA", "Artifact", "among", "current", "exists", "find", "load", "read",
    "read_stamp", "write_stamp",
]  # fmt: skip
