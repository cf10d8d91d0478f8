"""Hydra around a verb: one job, or one per point of a sweep."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from arcloop.compose import bundled, check, explain, register
from arcloop.errors import mendable
from arcloop.progress import say

if TYPE_CHECKING:
    from arcloop.chain import Outcome

GATE_NOT_PASSED = 3
_LONGEST_NAME = 200
FROM_RUN = ("embed", "index", "evaluate", "export")
"""Verbs that start from a finished run, with its settings."""


def launch(verb: str, arguments: Sequence[str]) -> int:
    """Compose the config with Hydra's command line and carry out the verb; returns the exit code.

    A job of a sweep that fails is told and the sweep goes on; its objective is NaN.

    Raises:
        ArcloopError: The config or, in a single run, the work is at fault.
    """
    failures: list[Exception] = []
    outcomes: list[Outcome] = []

    def job(config: DictConfig) -> float | None:
        settings = HydraConfig.get()
        sweeping = settings.mode == RunMode.MULTIRUN
        overrides = list(settings.overrides.task)
        if sweeping and not any(o.startswith("run_dir=") for o in overrides):
            swept = [o for o in overrides if o not in arguments]
            config.run_dir = str(Path(settings.sweep.dir) / folder_name(swept))
        try:
            check(config)
            from arcloop.chain import execute  # not before the config is known to be good

            if sweeping:
                say(f"job {settings.job.num}: {' '.join(overrides)} -> {config.run_dir}")
            outcome = execute(verb, config, overrides)
        except Exception as error:
            if sweeping and not mendable(error):
                raise
            failures.append(error)
            if sweeping:
                say(f"job {settings.job.num} failed: {mendable(error)}")
            return math.nan
        outcomes.append(outcome)
        return outcome.objective

    register()
    # Threads that spin for long while they wait make training several times slower beside other
    # work; threads that sleep at once cost a quarter of the speed on an idle machine.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Hydra would print its own account of an error and exit; ours is told by the caller.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    flags = [a for a in arguments if a not in overrides]
    stored = stored_overrides(overrides) if verb in FROM_RUN else []
    before, sys.argv = sys.argv, [f"arcloop {verb}", *flags, *stored, *overrides]
    try:
        hydra.main(config_path=str(bundled("conf")), config_name="config", version_base="1.3")(
            job
        )()
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from None
    finally:
        sys.argv = before
    if failures:
        raise failures[0]
    return GATE_NOT_PASSED if any(o.gate_passed is False for o in outcomes) else 0


def folder_name(swept: Sequence[str]) -> str:
    """Name a job's folder by what the sweep varies, as a file system takes it.

    >>> folder_name(["head.margin=0.2", "data.root=/a/b"])
    'head.margin=0.2,data.root=-a-b'
    """
    name = re.sub(r"[^\w.,=+\[\]-]", "-", ",".join(swept)) or "only"
    return (
        name
        if len(name) <= _LONGEST_NAME
        else f"{name[: _LONGEST_NAME - 9]}-{crc32(name.encode()):08x}"
    )


def stored_overrides(given: Sequence[str]) -> list[str]:
    """Return the overrides of the run that `given` names, less what it gives again.

    Args:
        given: Overrides, among them run_dir=...; [] is returned where there is no run.
    """
    from arcloop.artifacts import MANIFEST

    keys = [override.partition("=")[0].lstrip("+~") for override in given]
    values = dict(zip(keys, (o.partition("=")[2] for o in given), strict=True))
    try:
        manifest = json.loads((Path(values["run_dir"]) / MANIFEST).read_bytes())
    except (KeyError, OSError, ValueError):
        return []
    return [o for o in manifest["info"]["overrides"] if not _given_again(o, keys)]


def _given_again(override: str, keys: Sequence[str]) -> bool:
    """Whether a key is among `keys`, or its group: values of another choice would not fit it."""
    key = override.partition("=")[0].lstrip("+~")
    return key in keys or key.partition(".")[0] in keys
