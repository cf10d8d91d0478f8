"""The version of the code in the cache's key: the hash of all that decides what a step makes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import arcloop
from arcloop.artifacts.atomic import sha256_json
from arcloop.artifacts.provenance import package_versions
from arcloop.config.composition import bundled

_DIGITS = 16


def source_hash() -> str:
    """Return the hash of arcloop's source, its config files and the packages it computes with."""
    package = Path(arcloop.__file__).parent
    files = {
        f"{root.name}/{file.relative_to(root)}": hashlib.sha256(file.read_bytes()).hexdigest()
        for root in (package, bundled("conf"))
        for file in sorted(root.rglob("*"))
        if file.suffix in (".py", ".yaml", ".j2")
    }
    return sha256_json([files, package_versions()])[:_DIGITS]
