"""Hydra sweeper plugin for `sweep=optuna` and `sweep=random`."""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SearchSweeper(Sweeper):
    """Runs jobs whose values an Optuna sampler proposes.

    Args:
        **settings: Arguments of `arcloop.pipeline.sweeps.search.Search`.
    """

    def __init__(self, **settings: Any) -> None:
        from arcloop.pipeline.sweeps.search import Search

        self._search = Search(**settings)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self._folder = str(config.hydra.sweep.dir)
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        self._search.run(arguments, self._folder, self._launcher.launch)


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="arcloop_search",
    provider="arcloop",
    node={
        "_target_": f"{SearchSweeper.__module__}.{SearchSweeper.__name__}",
        "sampler": "${sweep.sampler}",
        "trials": "${sweep.trials}",
        "seed": "${sweep.seed}",
        "direction": "${monitor_mode}",
        "at_once": "${oc.select:launcher.jobs,1}",
    },
)
