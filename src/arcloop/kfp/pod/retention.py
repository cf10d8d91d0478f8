"""Remove old runs of a pipeline from the shared volume (layout: `arcloop.kfp.pod.storage`).

A run is removed as a whole, if no step has used it for a number of days and nothing that is kept
was made from it. A step marks the runs that it reads and writes as used while it runs, so the runs
that a running pipeline needs are recent. The newest run with an evaluation and the runs that live
deployments were made from are kept at any age, with all runs that their artifacts were made from.

A run is renamed before its files are deleted. If this process is killed, a later one completes
the deletion, and no step reads a part of a run.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import zipfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from arcloop import artifacts
from arcloop.artifacts import MANIFEST, Artifact
from arcloop.errors import ArtifactError
from arcloop.kfp.pod.storage import PIPELINES, USED

_REMOVED = ".removed-"
_DAY_S = 86400
_COMPARED = "versus"  # role of a model that an evaluation compares with, not was made from
_LIVE = ("*/live.json", "*/*/live.json", "*/*/*/live.json")  # of the model stores on the volume


def remove_old_runs(volume: Path, keep_days: float, *, dry_run: bool) -> int:
    """Remove old runs and print what was removed.

    Args:
        volume: Mount path of the volume.
        keep_days: Runs that were used in the last `keep_days` days are kept.
        dry_run: Only print what would be removed.

    Returns:
        The number of bytes that were removed, or would be.

    Raises:
        ArtifactError: The record of a live deployment cannot be read; nothing was removed.
    """
    root = volume / PIPELINES
    oldest = time.time() - keep_days * _DAY_S
    for leftover in [] if dry_run else root.glob(f"{_REMOVED}*"):
        _complete_removal(leftover, oldest)
    runs = {path.name: path for path in sorted(root.glob("[!.]*")) if path.is_dir()}
    kept = _find_kept(volume, runs, oldest)
    for name, reason in kept.items():
        print(f"kept {name}: {reason}")
    freed = 0
    for name in runs.keys() - kept.keys():
        size = _size(runs[name])
        if not dry_run and (reason := _remove(runs[name], oldest)):
            print(f"kept {name}: {reason}")
            continue
        freed += size
        print(f"{'would remove' if dry_run else 'removed'} {name}: {size:,} bytes")
    print(f"{'would free' if dry_run else 'freed'} {freed:,} bytes, kept {len(kept)} runs")
    return freed


def _find_kept(volume: Path, runs: Mapping[str, Path], oldest: float) -> dict[str, str]:
    """Return the runs to keep, with the reasons."""
    contents = {name: _artifacts(path) for name, path in runs.items()}
    kept = {
        name: f"used on {datetime.fromtimestamp(used, UTC):%Y-%m-%d}"
        for name, path in runs.items()
        if (used := _last_used(path)) > oldest
    }
    evaluated = [n for n, made in contents.items() if any(a.kind == "evaluation" for a in made)]
    if evaluated:
        newest = max(evaluated, key=lambda name: _last_used(runs[name]))
        kept.setdefault(newest, "the newest finished run")
    waiting = [(parent, name) for name in kept for parent in _parents(contents[name])]
    waiting += [(parent, store) for store, parents in _deployed(volume) for parent in parents]
    while waiting:
        wanted, user = waiting.pop()
        for name, made in contents.items():
            if name not in kept and wanted in _hashes(made):
                kept[name] = f"used by {user}"
                waiting += [(parent, name) for parent in _parents(made)]
    return kept


def _artifacts(run: Path) -> list[Artifact]:
    found = []
    for manifest in [*run.glob(f"*/*/{MANIFEST}"), *run.glob(f"*/*/*/{MANIFEST}")]:
        with contextlib.suppress(ArtifactError):
            found.append(artifacts.read(manifest.parent, None))
    return found


def _hashes(made: Iterable[Artifact]) -> set[str]:
    """Return the hashes by which other artifacts refer to these: of manifests and of models."""
    files = {str(entry["sha256"]) for a in made if a.kind == "run" for entry in a.files.values()}
    return files | {artifact.sha256 for artifact in made}


def _parents(made: Iterable[Artifact]) -> set[str]:
    return {h for a in made for role, h in a.parents.items() if role != _COMPARED}


def _deployed(volume: Path) -> list[tuple[str, list[str]]]:
    """Return the model stores on the volume, each with the parents of its live version."""
    found = []
    for record in (path for pattern in _LIVE for path in volume.glob(pattern)):
        store = record.parent
        try:
            live = json.loads(record.read_bytes())
            if live["live"] is None:
                continue
            with zipfile.ZipFile(store / f"{live['name']}-{live['live']}.mar") as archive:
                manifest: dict[str, Any] = json.loads(archive.read(MANIFEST))
            parents = manifest["parents"]
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as cause:
            raise ArtifactError(
                f"the live version of a model store cannot be read: {cause!r}",
                where=store,
                remedy="restore it, or remove the model store; nothing was removed",
            ) from None
        place = store.relative_to(volume)
        found.append((f"the live deployment in {place}", [*parents.values()]))
    return found


def _last_used(run: Path) -> float:
    marker = run / USED
    return (marker if marker.exists() else run).stat().st_mtime


def _remove(run: Path, oldest: float) -> str:
    """Remove a run; return why it was not removed, or an empty string."""
    removed = run.with_name(f"{_REMOVED}{run.name}")
    run.rename(removed)
    return _complete_removal(removed, oldest)


def _complete_removal(removed: Path, oldest: float) -> str:
    """Delete a renamed run, or restore its name if a step used it just before it was renamed."""
    marker = removed / USED
    if marker.exists() and marker.stat().st_mtime > oldest:
        removed.rename(removed.with_name(removed.name.removeprefix(_REMOVED)))
        return "a step uses it again"
    with contextlib.suppress(FileNotFoundError):  # another process removes it, too
        try:
            shutil.rmtree(removed)
        except PermissionError as cause:  # the next call tries again
            return f"{cause.filename} cannot be removed ({cause.strerror})"
    return ""


def _size(folder: Path) -> int:
    sizes = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            sizes += file.lstat().st_size if not file.is_dir() else 0
    return sizes
