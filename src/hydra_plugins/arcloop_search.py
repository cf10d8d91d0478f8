"""Hydra sweeper plugins: all combinations, and the searches of `sweep=`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from arcloop.pipeline.sweeps.space import Space


class GridSweeper(BasicSweeper):
    """Runs every combination of the values, without equal ones.

    Keys of `sweep.zip` vary together; a key that a choice of its group lacks is left out.
    """

    def split_arguments(  # type: ignore[override]
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        from arcloop.pipeline.sweeps.space import Space

        assert self.config is not None
        space = Space.of([str(override.input_line) for override in overrides])
        jobs = space.zipped(self.config.sweep.zip).jobs()
        size = max_batch_size or max(len(jobs), 1)
        return [jobs[start : start + size] for start in range(0, len(jobs), size)]


class SearchSweeper(Sweeper):
    """Runs jobs whose values an Optuna sampler proposes.

    Args:
        **settings: Arguments of `arcloop.pipeline.sweeps.search.Search`.
    """

    def __init__(self, **settings: Any) -> None:
        from arcloop.pipeline.sweeps.search import Search

        plain: dict[str, Any] = {
            name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for name, value in settings.items()
        }
        self._search = Search(**plain)

    def check(self, space: Space) -> None:
        """Check before the first job that the search can choose from these values."""
        self._search.check(space)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self._folder = str(config.hydra.sweep.dir)
        self._verb = str(getattr(task_function, "verb", ""))  # of `Job`
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        self._search.run(self._verb, arguments, self._folder, self._launcher.launch)


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="arcloop_search",
    provider="arcloop",
    node={
        "_target_": f"{SearchSweeper.__module__}.{SearchSweeper.__name__}",
        "sampler": "${oc.select:sweep.sampler,null}",
        "trials": "${oc.select:sweep.trials,null}",
        "seed": "${oc.select:sweep.seed,0}",
        "objective": "${sweep.objective}",
        "objectives": "${sweep.objectives}",
        "zip": "${sweep.zip}",
        "monitor": "${monitor}",
        "direction": "${monitor_mode}",
        "at_once": "${oc.select:launcher.jobs,1}",
    },
)
