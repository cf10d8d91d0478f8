"""The config files of arcloop, of plug-ins and of the project of the user."""

from __future__ import annotations

from pathlib import Path

from arcloop.config.plugins import installed_plugins
from arcloop.config.project import own_conf


def bundled(name: str) -> Path:
    """Return the path of "conf", or of "mnist", which is in the repository only."""
    package = Path(__file__).parents[1]
    installed = package / "_bundled" / name
    if installed.is_dir():
        return installed
    checkout = package.parents[1]
    return checkout / {"conf": "conf", "mnist": "data/mnist"}[name]


def main_file() -> Path:
    """Return config.yaml, of the project if it has one."""
    files = (folder / "config.yaml" for folder in config_folders())
    return next(file for file in files if file.is_file())


def choices_of(group: str) -> dict[str, Path]:
    """Return the files of a config group: choice -> YAML file that Hydra finds first."""
    files = [f for folder in config_folders() for f in sorted((folder / group).glob("*.yaml"))]
    return {file.stem: file for file in reversed(files)}


def config_groups() -> list[str]:
    """Return the names of all config groups, e.g. "head" and "sweep/pruner"."""
    found = {
        f.parent.relative_to(folder) for folder in config_folders() for f in folder.rglob("*.yaml")
    }
    return sorted(path.as_posix() for path in found if path.parts and path.parts[0] != "hydra")


def config_folders() -> list[Path]:
    """Return the folders of config files, in the order in which Hydra searches them."""
    own, plugins = own_conf(), [plugin.conf for plugin in installed_plugins()]
    return [*([own] if own else []), bundled("conf"), *plugins]
