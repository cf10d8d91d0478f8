"""Overrides recorded in a finished run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from arcloop.artifacts import MANIFEST


def stored_overrides(given: Sequence[str]) -> list[str]:
    """Return the overrides of the run that `given` names, less what it gives again.

    Args:
        given: Overrides, among them run_dir=...; [] is returned where there is no run.
    """
    keys = [override.partition("=")[0].lstrip("+~") for override in given]
    values = dict(zip(keys, (o.partition("=")[2] for o in given), strict=True))
    try:
        manifest = json.loads((Path(values["run_dir"]) / MANIFEST).read_bytes())
    except (KeyError, OSError, ValueError):
        return []
    return [o for o in manifest["info"]["overrides"] if not _given_again(o, keys)]


def _given_again(override: str, keys: Sequence[str]) -> bool:
    """Whether a key is among `keys`, or its group: values of another choice would not fit it."""
    key = override.partition("=")[0].lstrip("+~")
    return key in keys or key.partition(".")[0] in keys
