"""Checks the files in an archive before a server imports any of them.

A server imports the code in the archive from a folder that comes first on Python's path, so a file
that was appended to the archive, such as `json.py`, would be executed.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from pathlib import Path

from arcloop.runtime import MANIFEST

TORCHSERVE_MANIFEST = "MAR-INF/MANIFEST.json"
_READ_AT_START = (".py", ".yaml")


def find_member_fault(archive: Path) -> str | None:
    """Return what is wrong with the files in an archive, or None.

    Their names must be those in its manifest. The hashes of code and settings must be those in the
    manifest; the predictor verifies the other hashes before it loads a file.

    Args:
        archive: A .mar file.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            files = json.loads(opened.read(MANIFEST))["files"]
            counts = Counter(entry.filename for entry in opened.infolist())
            listed = {*files, MANIFEST, TORCHSERVE_MANIFEST}
            if unlisted := sorted({*counts} - listed):
                return f"the archive contains files that its manifest does not list: {unlisted}"
            if repeated := [name for name, count in counts.items() if count > 1]:
                return f"the archive contains several files with the same name: {repeated}"
            for name in sorted(listed & {*files}):
                if name.endswith(_READ_AT_START):
                    found = hashlib.sha256(opened.read(name)).hexdigest()
                    if found != files[name]["sha256"]:
                        return f"{name} has changed since it was archived"
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as cause:
        return f"it is not an archive: {cause}"
    return None
