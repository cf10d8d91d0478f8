"""Config files of installed packages: the entry points of the group `arcloop.plugins`.

The value of an entry point is the name of a package that contains a folder conf/. Its files add
choices and groups. They come after those of the project and of arcloop and cannot replace them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from arcloop.errors import ConfigError

GROUP = "arcloop.plugins"


@dataclass(frozen=True)
class Plugin:
    """An installed package that contributes config files.

    Attributes:
        name: Name of the entry point.
        requirement: The distribution that contains it and its version, e.g. "shoes==1.2".
        conf: Its folder of config files.
    """

    name: str
    requirement: str
    conf: Path


@cache
def installed_plugins() -> tuple[Plugin, ...]:
    """Return the installed plug-ins, sorted by name.

    Raises:
        ConfigError: A plug-in has no config files, or two have the same file.
    """
    plugins = tuple(_read(point) for point in sorted(entry_points(group=GROUP)))
    files: dict[Path, Plugin] = {}
    for plugin in plugins:
        for file in plugin.conf.rglob("*.yaml"):
            other = files.setdefault(file.relative_to(plugin.conf), plugin)
            if other is not plugin:
                raise ConfigError(
                    f"the plug-ins {other.requirement} and {plugin.requirement} have the same"
                    f" config file, {file.relative_to(plugin.conf)}",
                    remedy="uninstall one of them",
                )
    return plugins


def record_plugins() -> dict[str, dict[str, str]]:
    """Return what a run records of the installed plug-ins; empty without any."""
    plugins = {plugin.name: plugin.requirement for plugin in installed_plugins()}
    return {"plugins": plugins} if plugins else {}


@contextmanager
def naming_missing_plugins(info: Mapping[str, Any]) -> Iterator[None]:
    """Name the plug-ins of a run that are not installed, if its config cannot be composed.

    Args:
        info: `info` of the run's manifest.

    Raises:
        ConfigError: The body raised one; its remedy is to install the plug-ins.
    """
    try:
        yield
    except ConfigError as cause:
        present = {plugin.name for plugin in installed_plugins()}
        recorded: Mapping[str, str] = info.get("plugins", {})
        missing = [requirement for name, requirement in recorded.items() if name not in present]
        if not missing:
            raise
        raise ConfigError(
            f"{cause.what}\nThe run was made with plug-ins that are not installed:"
            f" {', '.join(missing)}",
            where=cause.where,
            remedy=f"pip install {' '.join(missing)}",
        ) from None


def _read(point: EntryPoint) -> Plugin:
    dist = point.dist
    requirement = f"{dist.name}=={dist.version}" if dist else point.name
    try:
        spec = find_spec(point.value)
    except ImportError:  # of a parent package
        spec = None
    folders = [Path(folder) / "conf" for folder in (spec and spec.submodule_search_locations) or ()]
    conf = next((folder for folder in folders if folder.is_dir()), None)
    if conf is None:
        raise ConfigError(
            f"the plug-in {point.name} of {requirement} names the package {point.value}, which"
            f" {'has no folder conf/' if spec else 'cannot be found'}",
            remedy=f"correct its entry point in the group {GROUP}, or uninstall {requirement}",
        )
    return Plugin(point.name, requirement, conf)
