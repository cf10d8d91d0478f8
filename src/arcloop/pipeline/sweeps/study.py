"""The study of a search, in the folder of the sweep, and the check of its settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study, StudyDirection

from arcloop.errors import ConfigError
from arcloop.pipeline.sweeps.pruning import STORAGE, STUDY

_SETTINGS, _SPACE = "settings", "space"
_DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
_WITHOUT_EFFECT = (
    "sweep", "launcher", "hydra", "run_dir", "stores_dir", "name", "resume", "overwrite", "check",
    "force", "logger", "deploy", "threads", "loader.num_workers", "loader.prefetch_factor",
    "loader.on_device", "monitor", "monitor_mode",
)  # fmt: skip
"""Keys and groups that do not change the objective. `monitor` and `monitor_mode` define it, and the
resolved values of these are compared."""


def fixed_values(overrides: Sequence[str]) -> dict[str, str]:
    """Return key -> value of the overrides with one value that may change the objective.

    >>> fixed_values(["data=synthetic", "threads=2", "loader.num_workers=1", "sweep/pruner=asha"])
    {'data': 'synthetic'}
    """
    found = {}
    for override in overrides:
        key, _, value = override.partition("=")
        name = f"{key.lstrip('+~').replace('/', '.')}."
        if not any(name.startswith(f"{prefix}.") for prefix in _WITHOUT_EFFECT):
            found[key.lstrip("+")] = value
    return dict(sorted(found.items()))


def open_study(folder: Path, settings: Mapping[str, Any], directions: Sequence[str]) -> Study:
    """Open the study of a folder, or create it.

    Args:
        folder: Folder of the sweep.
        settings: Name -> value, or mapping of values; recorded when the study is created.
        directions: "max" or "min" of each objective.

    Raises:
        ConfigError: The study was created with other settings.
    """
    study = optuna.create_study(
        study_name=STUDY,
        storage=f"sqlite:///{folder / STORAGE}",
        directions=[_DIRECTIONS[direction] for direction in directions],
        load_if_exists=True,
    )
    before = study.user_attrs.get(_SETTINGS)
    if before is None:
        if old := study.user_attrs.get(_SPACE):  # of an earlier version, which recorded less
            minimised = study.directions == [StudyDirection.MINIMIZE]
            before = {"space": old, "direction": "min" if minimised else "max", "objectives": {}}
            _require_equal(before, settings, folder)
        study.set_user_attr(_SETTINGS, settings)
    else:
        _require_equal(before, settings, folder)
    return study


def _require_equal(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    if differences := list(_differences(before, now)):
        raise ConfigError(
            f"this folder contains a search that differs in {'; '.join(differences)}",
            where=folder,
            remedy="repeat the first command, or use another folder: hydra.sweep.dir=...",
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name, old in before.items():
        new = now.get(name)
        if old == new:
            continue
        if name == "space":
            keys = [key for key in {**old, **(new or {})} if old.get(key) != (new or {}).get(key)]
            yield f"the values of {', '.join(keys)}"
        elif isinstance(old, Mapping) and isinstance(new, Mapping):
            for key in sorted({**old, **new}):
                if old.get(key) != new.get(key):
                    there, here = old.get(key, "the default"), new.get(key, "the default")
                    yield f"{key} (there {there}, here {here})"
        else:
            yield f"{name} (there {_text(old)}, here {_text(new)})"


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
