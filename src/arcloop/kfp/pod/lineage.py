"""Properties of an output artifact in ML Metadata: code, data, config and metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from arcloop import artifacts
from arcloop.artifacts.atomic import sha256_json
from arcloop.artifacts.metrics import FILE, read_metrics

_MAX_NAME = 255
_MAX_BYTES = 60_000
"""ML Metadata stores a name in 255 characters and, in old versions, a text in 65535 bytes."""


def properties(folder: Path, inputs: Mapping[str, Path]) -> dict[str, str | float]:
    """Return the properties of an artifact: finite numbers and texts within the limits.

    KFP fails a step with a property that is null.

    Args:
        folder: The artifact.
        inputs: Role -> folder of each artifact that it was made from.

    Returns:
        `git`, the commit of the code; `data`, the fingerprint of the data source; `config`, as
        JSON, or its hash if it is too long; and `metric.NAME`.
    """
    made = artifacts.read(folder, None)
    store = made if made.kind == "store" else artifacts.read(inputs["store"], "store")
    config = json.dumps(made.config, sort_keys=True)
    if len(config.encode()) > _MAX_BYTES:
        config = f"sha256:{sha256_json(made.config)}"
    values: dict[str, str | float] = {"data": store.info["key"], "config": config}
    if git := made.code["git"]:
        values["git"] = git
    if FILE in made.files:
        values |= {f"metric.{name}": value for name, value in read_metrics(folder).items()}
    return {
        name: value
        for name, value in values.items()
        if len(name) <= _MAX_NAME
        and (isinstance(value, str) or (value is not None and math.isfinite(value)))
    }


def is_property(name: str) -> bool:
    """Return whether a name is that of one of the `properties`."""
    return name in ("git", "data", "config") or name.startswith("metric.")
