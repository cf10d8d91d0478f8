"""What a search may try: a key's values, as optuna and the command line write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Space:
    """The values that a search chooses from.

    Attributes:
        distributions: Key -> optuna's distribution of its values.
        fixed: Overrides that every job has.
    """

    distributions: dict[str, BaseDistribution]
    fixed: tuple[str, ...]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Space:
        """Read overrides: an `interval(...)` bounds values, all else that is swept lists them."""
        given = OverridesParser.create().parse_overrides(list(arguments))
        return cls(
            {o.get_key_element(): _distribution(o) for o in given if o.is_sweep_override()},
            tuple(str(o.input_line) for o in given if not o.is_sweep_override()),
        )

    def job(self, params: dict[str, Any]) -> tuple[str, ...]:
        """Return the overrides of the job that tries these values."""
        return (*self.fixed, *(f"{key}={params[key]}" for key in self.distributions))

    def described(self) -> dict[str, str]:
        """Return the space as text, to compare it with that of an earlier command."""
        return {key: str(distribution) for key, distribution in self.distributions.items()}


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    value = override.value()
    if not isinstance(value, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    low: Any = value.start
    high: Any = value.end
    log = "log" in value.tags
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)
