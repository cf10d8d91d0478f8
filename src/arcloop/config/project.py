"""The project of the user: configs that come before those of arcloop, and classes of its own.

A project is a folder that contains conf/. The project of a command is the first of

1. the folder that `--config-dir` or the variable ARCLOOP_PROJECT names,
2. on a finished run, the project that the run records,
3. the nearest parent of the current directory whose pyproject.toml has the table `[tool.arcloop]`.

Its conf/ comes before that of arcloop on Hydra's search path: a file of the same name replaces the
one of arcloop, and other files add choices and groups. Its classes can be imported from src/, if
there is such a folder.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arcloop.artifacts.atomic import sha256_file, sha256_json
from arcloop.errors import ConfigError

VARIABLE = "ARCLOOP_PROJECT"
_OF_RUN = "ARCLOOP_PROJECT_OF_RUN"
"""Set if the project in `VARIABLE` is that of a run, which the next run of a sweep replaces."""
_PYTHON_PATH = "PYTHONPATH"
_CHANGED = (VARIABLE, _OF_RUN, _PYTHON_PATH)


def find_project() -> Path | None:
    """Return the absolute path of the current project, or None.

    Raises:
        ConfigError: The folder in ARCLOOP_PROJECT does not exist, or a pyproject.toml is invalid.
    """
    if given := os.environ.get(VARIABLE):
        return _existing(Path(given), f"{VARIABLE}={given}")
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if _is_project(folder)), None)


def own_conf() -> Path | None:
    """Return the folder of the configs of the current project, or None.

    This is conf/ in the project, or the folder itself, which `--config-dir` may name.
    """
    project = find_project()
    if project is None:
        return None
    return project / "conf" if (project / "conf").is_dir() else project


def own_sources() -> Path | None:
    """Return the folder from which the classes of the current project are imported, or None."""
    project = find_project()
    return project / "src" if project is not None and (project / "src").is_dir() else None


@contextmanager
def project_of(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Set up the project of a command; yields its arguments without `--config-dir`.

    The environment of child processes names the project and contains its classes: the ranks of a
    training, jobs of a sweep, and steps of a pipeline on this machine. It is restored at the end.

    Raises:
        ConfigError: The project does not exist.
    """
    given, rest = _config_folder(arguments)
    before, path = {name: os.environ.get(name) for name in _CHANGED}, [*sys.path]
    try:
        if given is not None:
            folder = _existing(Path(given), f"--config-dir {given}")
            os.environ[VARIABLE] = str(folder.parent if folder.name == "conf" else folder)
        _make_importable()
        yield rest
    finally:
        sys.path[:] = path
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def project_hash() -> str:
    """Return a hash of the configs and classes of the current project; empty without one."""
    roots = [root for root in (own_conf(), own_sources()) if root is not None]
    return sha256_json(hash_files(roots))[:16] if roots else ""


def hash_files(roots: Iterable[Path]) -> dict[str, str]:
    """Return path -> SHA-256 of all files in folders, except compiled ones."""
    return {
        f"{root.name}/{file.relative_to(root)}": sha256_file(file)
        for root in roots
        for file in sorted(root.rglob("*"))
        if file.is_file() and file.suffix != ".pyc" and file.parent.suffix != ".egg-info"
    }


def record_project() -> dict[str, str]:
    """Return what a run records of the current project; empty without one."""
    project = find_project()
    return {} if project is None else {"project": str(project)}


def use_project_of_run(info: Mapping[str, Any], run_dir: Path) -> None:
    """Use the project that a run records, unless the user names one.

    Args:
        info: `info` of the run's manifest.
        run_dir: The run.

    Raises:
        ConfigError: The project was moved or removed.
    """
    if os.environ.get(VARIABLE) and not os.environ.get(_OF_RUN):
        return
    for name in (VARIABLE, _OF_RUN):
        os.environ.pop(name, None)
    recorded = info.get("project")
    if recorded is None:
        return
    if not Path(recorded).is_dir():
        raise ConfigError(
            f"the project of this run, {recorded}, does not exist any more",
            where=run_dir,
            remedy=f"set {VARIABLE} to the folder that it was moved to",
        )
    os.environ[VARIABLE], os.environ[_OF_RUN] = recorded, "1"
    _make_importable()


def _config_folder(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the value of `--config-dir`, and the other arguments."""
    if not any(argument.startswith(("--config-dir", "-cd")) for argument in arguments):
        return None, list(arguments)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    found, rest = parser.parse_known_args(list(arguments))
    return found.config_dir, rest


def _make_importable() -> None:
    """Add the classes of the project to the search paths of this process and of its children."""
    if (sources := own_sources()) is None:
        return
    folder = str(sources)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    paths = [path for path in os.environ.get(_PYTHON_PATH, "").split(os.pathsep) if path]
    if folder not in paths:
        os.environ[_PYTHON_PATH] = os.pathsep.join([folder, *paths])


def _existing(folder: Path, where: str) -> Path:
    if not folder.is_dir():
        raise ConfigError("there is no such folder", where=where, remedy="correct the path")
    return folder.absolute()


def _is_project(folder: Path) -> bool:
    """Return whether a folder has conf/ and a pyproject.toml with the table `[tool.arcloop]`."""
    file = folder / "pyproject.toml"
    if not (file.is_file() and (folder / "conf").is_dir()):
        return False
    try:
        return _has_table(file, file.stat().st_mtime_ns)
    except (OSError, ValueError) as cause:
        raise ConfigError(f"cannot read it: {cause}", where=file, remedy="correct it") from None


@functools.cache
def _has_table(file: Path, _: int) -> bool:
    """Return whether a pyproject.toml of this modification time has the table `[tool.arcloop]`."""
    return "arcloop" in tomllib.loads(file.read_text("utf-8")).get("tool", {})
