"""The values of a sweep as parameters of Optuna trials, and the jobs of a trial.

`seed` is not a parameter: each trial runs all seeds. A conditional key is a parameter of the trials
whose choices have it. Keys that vary together are one categorical parameter.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, product
from typing import Any

from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import Trial

from arcloop.errors import ConfigError
from arcloop.pipeline.sweeps.space import SEED, Axis, Point, Space

Params = Mapping[str, Any]
"""Name -> value of the parameters of a trial."""


class Proposals:
    """Proposes parameters with a study, and converts them to overrides of jobs.

    Args:
        space: The overrides of the sweep.

    Attributes:
        seeds: Overrides such as "seed=0", or one empty string if `seed` does not vary.
        distributions: Name -> distribution of each parameter.

    Raises:
        ConfigError: The values of a key have no distribution, or only `seed` varies.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self.seeds = _seeds(space)
        axes = [axis for axis in space.axes if SEED not in axis.keys]
        if not axes:
            raise ConfigError(
                "only seed varies, so sweep= has no values to choose from",
                remedy="give another key several values, or omit sweep=",
            )
        self._axes = {",".join(axis.keys): axis for axis in axes}
        self.distributions = {name: _distribution(axis) for name, axis in self._axes.items()}

    def ask(self, study: Study) -> Trial:
        """Start a trial with parameters that the sampler of a study proposes."""
        trial, chosen = study.ask(), list[str]()
        # A choice of a group is proposed before the keys that depend on it.
        for name, axis in sorted(self._axes.items(), key=lambda item: self._depends(item[1])):
            if self._is_active(axis, chosen):
                chosen += self._point(name, _suggest(trial, name, self.distributions[name]))
        return trial

    def overrides(self, params: Params) -> list[str]:
        """Return the overrides with the values of a trial, without the seed."""
        return [text for name, value in params.items() for text in self._point(name, value)]

    def jobs(self, params: Params) -> list[list[str]]:
        """Return the overrides of the jobs of a trial, one for each seed."""
        chosen = self.overrides(params)
        seeds = [[seed] if seed else [] for seed in self.seeds]
        return [self._space.overrides([*chosen, *seed]) for seed in seeds]

    def is_complete(self, params: Params) -> bool:
        """Return whether all parameters were proposed."""
        chosen = self.overrides(params)
        needed = {name for name, axis in self._axes.items() if self._is_active(axis, chosen)}
        return params.keys() == needed

    def combinations(self) -> list[dict[str, Any]]:
        """Return the parameters of every combination, in the order of a sweep without `sweep=`.

        Raises:
            ConfigError: A key is an interval.
        """
        self._space.require_lists()
        found = {}
        for points in product(*(axis.points for axis in self._axes.values())):
            chosen = list(chain(*points))
            params = {
                name: _value(point)
                for (name, axis), point in zip(self._axes.items(), points, strict=True)
                if self._is_active(axis, chosen)
            }
            found[tuple(params.items())] = params
        return list(found.values())

    def describe(self) -> dict[str, str]:
        """Return name -> description of each parameter; equal for equal values."""
        return {name: str(distribution) for name, distribution in self.distributions.items()}

    def _depends(self, axis: Axis) -> bool:
        """Return whether a choice of another axis decides if this one is a parameter."""
        texts = [text for key in axis.keys for text in self._space.lacking.get(key, ())]
        return any(text.partition("=")[0] not in axis.keys for text in texts)

    def _is_active(self, axis: Axis, chosen: Sequence[str]) -> bool:
        own = set(axis.keys)
        others = [text for text in chosen if text.partition("=")[0] not in own]
        return any(self._space.has(key, others) for key in axis.keys)

    def _point(self, name: str, value: Any) -> Point:
        axis = self._axes[name]
        if axis.interval:
            return (f"{axis.keys[0]}={value}",)
        return next(point for point in axis.points if _value(point) == value)


def make_sampler(factory: Callable[..., BaseSampler], seed: int) -> BaseSampler:
    """Return a sampler, without Optuna's warnings that some arguments are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return factory(seed=seed)


def _seeds(space: Space) -> tuple[str, ...]:
    """Return the overrides of `seed`."""
    for axis in space.axes:
        if SEED not in axis.keys:
            continue
        if axis.interval or len(axis.keys) > 1:
            raise ConfigError(
                "seed is not searched: a trial runs all seeds, so seed needs a list of its own",
                remedy="give a list, such as seed=0,1,2 or seed=range(3), outside of sweep.zip",
            )
        return tuple(dict.fromkeys(text for (text,) in axis.points))
    return ("",)


def _value(point: Point) -> str:
    """Return the value of a categorical parameter: the values of its keys."""
    return ",".join(text.partition("=")[2] for text in point)


def _distribution(axis: Axis) -> BaseDistribution:
    """Return the distribution: `interval(...)` gives bounds, other sweeps give lists of values."""
    if axis.interval is None:
        return CategoricalDistribution(list(dict.fromkeys(map(_value, axis.points))))
    low: Any = axis.interval.start
    high: Any = axis.interval.end
    log = "log" in axis.interval.tags
    try:
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low), float(high), log=log)
    except (ValueError, HydraException) as cause:
        raise ConfigError(
            f"cannot choose from {axis.keys[0]}=interval({low},{high}): {cause}",
            remedy="give a list of values, or an interval such as interval(0.2,0.6)",
        ) from cause


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
