"""The values of a sweep: lists and intervals, keys that vary together, and conditional keys.

A key is conditional if several choices of its group are given and some of them lack it: with
`head=arcface,softmax head.margin=0.2,0.4`, the jobs of softmax have no margin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, product
from typing import Any

from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from arcloop.config.composition import compose_choice, parse_overrides
from arcloop.config.files import choices_of
from arcloop.errors import ConfigError

_MAX_VALUES = 32
"""Values per key that are checked before the first job; each job checks the remaining ones."""

SEED = "seed"

Point = tuple[str, ...]
"""One override for each key of an axis, such as ("head.margin=0.2", "head.scale=16")."""


@dataclass(frozen=True)
class Axis:
    """Values of one key, or of several keys that `sweep.zip` varies together.

    Attributes:
        keys: The keys as given, e.g. "head.margin" or "+trainer.max_time".
        points: The values; of an interval, its two bounds.
        interval: The interval, or None for a list of values.
    """

    keys: tuple[str, ...]
    points: tuple[Point, ...]
    interval: IntervalSweep | None = None

    @classmethod
    def of(cls, override: Override) -> Axis:
        """Return the axis of an override with several values."""
        key = override.get_key_element()
        value: Any = override.value()
        if isinstance(value, IntervalSweep):
            return cls((key,), ((f"{key}={value.start}",), (f"{key}={value.end}",)), value)
        if isinstance(value, Glob):
            names = sorted(choices_of(key))
            texts = list(value.filter(names)) or ["none of these"]
        else:
            texts = list(override.sweep_string_iterator())
        return cls((key,), tuple((f"{key}={text}",) for text in texts))


@dataclass(frozen=True)
class Space:
    """The overrides of a sweep.

    Attributes:
        given: All overrides, in the order of the command line.
        axes: The values of the keys that vary.
        lacking: Conditional key -> overrides that select a choice of its group without the key.
    """

    given: tuple[str, ...]
    axes: tuple[Axis, ...]
    lacking: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Space:
        """Read the overrides of a sweep.

        Args:
            arguments: Overrides as given.

        Raises:
            ConfigError: An override cannot be parsed.
        """
        # Of two overrides of a key, the last one counts, as in Hydra's own sweeper.
        parsed = {override.get_key_element(): override for override in parse_overrides(arguments)}
        axes = tuple(
            Axis.of(override) for override in parsed.values() if override.is_sweep_override()
        )
        given = tuple(str(override.input_line) for override in parsed.values())
        return cls(given, axes, _lacking_choices(given, axes))

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys that vary, without "+", in the order of the command line."""
        varied = set(chain.from_iterable(axis.keys for axis in self.axes))
        return tuple(dict.fromkeys(_key(w).lstrip("+") for w in self.given if _key(w) in varied))

    @property
    def fixed(self) -> list[str]:
        """The overrides with one value."""
        varied = set(chain.from_iterable(axis.keys for axis in self.axes))
        return [word for word in self.given if _key(word) not in varied]

    def zipped(self, groups: Sequence[Any]) -> Space:
        """Return the space with keys that vary together.

        Args:
            groups: Value of `sweep.zip`: a list of keys, or a list of such lists.

        Raises:
            ConfigError: A key does not vary, or the lists of values have unequal lengths.
        """
        lists = [groups] if any(isinstance(entry, str) for entry in groups) else list(groups)
        space = self
        for keys in lists:
            space = space._with_zip([str(key) for key in keys])
        return space

    def _with_zip(self, keys: Sequence[str]) -> Space:
        shown = f"sweep.zip=[{','.join(keys)}]"
        axes = {axis.keys[0].lstrip("+"): axis for axis in self.axes if len(axis.keys) == 1}
        for key in keys:
            if key not in axes or axes[key].interval or list(keys).count(key) > 1:
                raise ConfigError(
                    f"{shown}: {key} is not a key with a list of values that is named once",
                    remedy=f"give it a list of values, such as {key}=1,2, or omit it in sweep.zip",
                )
        chosen = [axes[key] for key in keys]
        if len({len(axis.points) for axis in chosen}) > 1:
            counts = ", ".join(f"{axis.keys[0]} has {len(axis.points)}" for axis in chosen)
            raise ConfigError(
                f"{shown} needs lists of equal length, but {counts} values",
                remedy="give each of these keys the same number of values",
            )
        points = zip(*(axis.points for axis in chosen), strict=True)
        joined = Axis(
            tuple(axis.keys[0] for axis in chosen), tuple(tuple(chain(*one)) for one in points)
        )
        merged = [joined if axis is chosen[0] else axis for axis in self.axes]
        return replace(self, axes=tuple(axis for axis in merged if axis not in chosen[1:]))

    def overrides(self, chosen: Iterable[str]) -> list[str]:
        """Return the overrides of a job, without the keys that its choices of groups lack.

        Args:
            chosen: An override of each key that varies; a conditional key may be absent.
        """
        texts = {_key(text): text for text in chosen}
        varied = set(chain.from_iterable(axis.keys for axis in self.axes))
        return [
            texts.get(_key(word), word)
            for word in self.given
            if (_key(word) in texts or _key(word) not in varied)
            and self.has(_key(word), texts.values())
        ]

    def has(self, key: str, chosen: Iterable[str]) -> bool:
        """Return whether a key exists in the config with these overrides."""
        return self.lacking.get(key, frozenset()).isdisjoint(chosen)

    def jobs(self) -> list[list[str]]:
        """Return the overrides of each combination of the values; equal ones are returned once.

        >>> Space.of(["seed=0,1", "head=arcface"]).jobs()
        [['seed=0', 'head=arcface'], ['seed=1', 'head=arcface']]

        Raises:
            ConfigError: A key is an interval.
        """
        self.require_lists()
        points = product(*(axis.points for axis in self.axes))
        return _distinct(self.overrides(chain(*chosen)) for chosen in points)

    def require_lists(self) -> None:
        """Check that every key has a list of values.

        Raises:
            ConfigError: A key is an interval.
        """
        if intervals := [axis.keys[0] for axis in self.axes if axis.interval]:
            raise ConfigError(
                f"{intervals[0]} is an interval, which cannot be enumerated",
                remedy="list its values, for example head.margin=0.2,0.3, or add sweep=optuna or"
                " sweep=random, which choose values in an interval",
            )

    def checks(self) -> list[list[str]]:
        """Return overrides that combine each value of each key with the first values of the others.

        A conditional key is combined with the first choice that has it.
        """
        firsts = [axis.points[0] for axis in self.axes]
        found = [firsts]
        for number, axis in enumerate(self.axes):
            for point in axis.points[:_MAX_VALUES]:
                texts = [*firsts[:number], point, *firsts[number + 1 :]]
                choices = [c for key in axis.keys for c in self._choice(key, texts)]
                found += [texts, [*texts, *choices]]
        return _distinct(self.overrides(chain(*points)) for points in found)

    def _choice(self, key: str, points: Sequence[Point]) -> list[Point]:
        """Return the first choice that has a conditional key, unless the one in `points` has it."""
        if self.has(key, chain(*points)):
            return []
        lacking = self.lacking[key]
        groups = {_key(text) for text in lacking}
        choices = (text for axis in self.axes for text in chain(*axis.points))
        return [(next(t for t in choices if _key(t) in groups and t not in lacking),)]


def nothing_varies() -> ConfigError:
    """Return the error of a sweep in which no key has several values."""
    return ConfigError(
        "-m is given, but no key has several values",
        remedy="give a key several values, for example head.margin=0.2,0.3, or omit -m",
    )


def _distinct(jobs: Iterable[list[str]]) -> list[list[str]]:
    return [list(job) for job in dict.fromkeys(tuple(job) for job in jobs)]


def _key(override: str) -> str:
    return override.partition("=")[0]


def _lacking_choices(given: Sequence[str], axes: Sequence[Axis]) -> dict[str, frozenset[str]]:
    """Find the conditional keys. A key that no choice has is not conditional, but an error."""
    found: dict[str, frozenset[str]] = {}
    search_path = [word for word in given if _key(word) == "hydra.searchpath"]
    for axis in axes:
        (group,), choices = axis.keys, [text for (text,) in axis.points]
        prefix = f"{group.replace('/', '.')}."
        keys = {key for word in given if (key := _key(word)).startswith(prefix)}
        if not keys or not choices_of(group):
            continue
        lacking: dict[str, set[str]] = {key: set() for key in keys}
        for choice in choices:
            names = choice.partition("=")[2].strip("[]").split(",")
            try:
                files = [compose_choice(group, name.strip(), search_path) for name in names]
            except ConfigError:
                continue  # the check of the values reports it
            for key in keys:
                if not any(_contains(config, key) for config in files):
                    lacking[key].add(choice)
        found |= {k: frozenset(some) for k, some in lacking.items() if 0 < len(some) < len(choices)}
    return found


def _contains(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent)
    return isinstance(node, DictConfig) and name in node.keys()  # noqa: SIM118 - also missing values
