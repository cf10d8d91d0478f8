"""Hydra's search path: the configs of the project, of arcloop and of plug-ins.

A module of its own, because heads and metrics, which other training loops use, import
`arcloop.config.project` and must not import Hydra.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from arcloop.config.plugins import installed_plugins
from arcloop.config.project import own_conf


class ProjectSearchPath(SearchPathPlugin):
    """Puts conf/ of the project before that of arcloop, and those of plug-ins after it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if (conf := own_conf()) is not None:
            search_path.prepend(
                "project", f"file://{conf}", SearchPathQuery(provider="main", path=None)
            )
        for plugin in installed_plugins():
            search_path.append(plugin.name, f"file://{plugin.conf}")


def register_search_path() -> None:
    """Register `ProjectSearchPath` with Hydra."""
    Plugins.instance().register(ProjectSearchPath)
