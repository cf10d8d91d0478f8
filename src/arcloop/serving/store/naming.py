"""How archives are named: NAME-VERSION.mar, where a version is TIME-LINEAGE."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

VERSION = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{12}")


def make_version(time: datetime, lineage: str) -> str:
    """Return the version of what is archived at a time: sorted by time, unique by lineage.

    >>> make_version(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "0123456789ab")
    '20260102T030405Z-0123456789ab'
    """
    return f"{time.astimezone(UTC):%Y%m%dT%H%M%SZ}-{lineage}"


def file_name(name: str, version: str) -> str:
    """Return the file name of an archive."""
    return f"{name}-{version}.mar"


def version_of(file: Path, name: str) -> str | None:
    """Return the version in the file name of an archive of this model; None for any other file.

    >>> version_of(Path("a-b-20260102T030405Z-0123456789ab.mar"), "a-b")
    '20260102T030405Z-0123456789ab'
    """
    version = file.name.removeprefix(f"{name}-").removesuffix(".mar")
    whole = file.name == file_name(name, version)
    return version if whole and VERSION.fullmatch(version) else None
