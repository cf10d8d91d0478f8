"""Conditions of `arcloop leaderboard --where`, such as `head.margin=0.2` and `seed>1`."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from arcloop.errors import ConfigError
from arcloop.pipeline.leaderboard.results import JobResult, as_number

_CONDITION = re.compile(r"([^=<>!\s]+)\s*(<=|>=|!=|==|=|<|>)\s*(.*)")
_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def select(jobs: Sequence[JobResult], conditions: Sequence[str]) -> list[JobResult]:
    """Return the jobs that meet all conditions.

    Numbers are compared as numbers, so 0.20 equals 0.2; other values are compared as strings.

    Args:
        jobs: The jobs of a sweep.
        conditions: "KEY OPERATOR VALUE" with one of = != < <= > >=. KEY is a key of the config, or
            `state`.

    Raises:
        ConfigError: A condition is invalid, no job has its key, or no job meets them.
    """
    selected = list(jobs)
    for condition in conditions:
        parsed = _CONDITION.fullmatch(condition.strip())
        if parsed is None:
            raise ConfigError(
                f"cannot read the condition {condition!r}",
                where="--where",
                remedy="use KEY=VALUE, !=, <, <=, > or >=, for example --where 'head.margin>=0.2'",
            )
        key, name, value = parsed.groups()
        if all(_value(job, key) is None for job in jobs):
            known = dict.fromkeys(k for job in jobs for k in job.overrides)
            near = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(
                f"no job has the key {key}",
                where=f"--where {condition!r}",
                remedy=f"did you mean {near[0]}?" if near else f"keys: {', '.join(known)}, state",
            )
        selected = [job for job in selected if _holds(_value(job, key), name, value)]
    if jobs and not selected:
        raise ConfigError(
            "no job meets the conditions",
            where=" ".join(f"--where {condition!r}" for condition in conditions),
            remedy=f"omit one of them; there are {len(jobs)} jobs",
        )
    return selected


def _value(job: JobResult, key: str) -> str | None:
    return job.state if key == "state" else job.value(key)


def _holds(found: str | None, name: str, value: str) -> bool:
    if found is None:
        return name == "!="
    left, right = as_number(found), as_number(value)
    if left is None or right is None:
        return _OPERATORS[name](found, value)
    return _OPERATORS[name](left, right)
