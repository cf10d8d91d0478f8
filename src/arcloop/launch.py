"""Hydra around a verb: one job, or one per point of a sweep."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from arcloop.chain import Outcome, base_overrides, execute
from arcloop.compose import bundled, check, explain, register
from arcloop.errors import ArcloopError
from arcloop.progress import say

GATE_NOT_PASSED = 3


def launch(verb: str, arguments: Sequence[str]) -> int:
    """Compose the config with Hydra's command line and carry out the verb; returns the exit code.

    A job of a sweep that fails is told and the sweep goes on; its objective is NaN.

    Raises:
        ArcloopError: The config or, in a single run, the work is at fault.
    """
    failures: list[ArcloopError] = []
    outcomes: list[Outcome] = []

    def job(config: DictConfig) -> float | None:
        settings = HydraConfig.get()
        sweeping = settings.mode == RunMode.MULTIRUN
        overrides = list(settings.overrides.task)
        if sweeping and not any(o.startswith("run_dir=") for o in overrides):
            config.run_dir = str(Path(settings.sweep.dir) / settings.sweep.subdir)
        try:
            check(config)
            if sweeping:
                say(f"job {settings.job.num}: {' '.join(overrides)} -> {config.run_dir}")
            outcome = execute(verb, config, overrides)
        except ArcloopError as error:
            failures.append(error)
            if sweeping:
                say(f"job {settings.job.num} failed: {error}")
            return math.nan
        outcomes.append(outcome)
        return outcome.objective

    register()
    # Hydra would print its own account of an error and exit; ours is told by the caller.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    flags = [a for a in arguments if a.startswith("-")]
    values = base_overrides(verb, [a for a in arguments if not a.startswith("-")])
    before, sys.argv = sys.argv, [f"arcloop {verb}", *flags, *values]
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
