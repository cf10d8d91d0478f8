"""The config files of arcloop and of the project of the user."""

from __future__ import annotations

from pathlib import Path

from arcloop.config.project import own_conf


def bundled(name: str) -> Path:
    """Return the path of a folder that arcloop contains: "conf" or "mnist"."""
    package = Path(__file__).parents[1]
    installed = package / "_bundled" / name
    if installed.is_dir():
        return installed
    checkout = package.parents[1]
    return checkout / {"conf": "conf", "mnist": "data/mnist"}[name]


def choices_of(group: str) -> dict[str, Path]:
    """Return the files of a config group: choice -> YAML file, of the project before arcloop's."""
    folders = [bundled("conf"), own_conf()]
    files = [f for folder in folders if folder for f in sorted((folder / group).glob("*.yaml"))]
    return {file.stem: file for file in files}


def config_groups() -> list[str]:
    """Return the names of the config groups of arcloop and of the project."""
    folders = [folder for folder in (bundled("conf"), own_conf()) if folder is not None]
    return sorted({path.name for folder in folders for path in folder.iterdir() if path.is_dir()})
