"""Hydra around a verb: one job, or one per point of a sweep."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from arcloop.config.composition import (
    as_config_error,
    bundled,
    check_config,
    recorded_overrides,
    register_schema,
)
from arcloop.errors import ResourceError

if TYPE_CHECKING:
    from arcloop.pipeline.chain import Outcome

GATE_NOT_PASSED = 3
FROM_RUN = ("embed", "index", "evaluate", "export")
"""Verbs that start from a finished run, with its settings."""


def launch(verb: str, arguments: Sequence[str]) -> int:
    """Compose the config with Hydra's command line and carry out the verb; returns the exit code.

    Raises:
        ArcloopError: The config or the work is at fault; in a sweep, that of any job.
    """
    register_schema()
    # Threads that spin for long while they wait make training several times slower beside other
    # work; threads that sleep at once cost a quarter of the speed on an idle machine.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Hydra would print its own account of an error and exit; ours is told by the caller.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    flags = [a for a in arguments if a not in overrides]
    stored = recorded_overrides(overrides) if verb in FROM_RUN else []
    if {"-m", "--multirun"} & set(flags) or "hydra.mode=MULTIRUN" in overrides:
        return _sweep(verb, flags, [*stored, *overrides])
    return _single(verb, flags, [*stored, *overrides])


def _single(verb: str, flags: Sequence[str], overrides: Sequence[str]) -> int:
    failures: list[Exception] = []
    outcomes: list[Outcome] = []

    def job(config: DictConfig) -> None:
        try:
            check_config(config)
            from arcloop.pipeline.chain import execute  # not before the config is known to be good

            outcomes.append(execute(verb, config, list(HydraConfig.get().overrides.task)))
        except Exception as error:  # noqa: BLE001 - raised below, past Hydra
            failures.append(error)

    _hydra(job, verb, [*flags, *overrides])
    if failures:
        raise failures[0]
    return GATE_NOT_PASSED if any(o.gate_passed is False for o in outcomes) else 0


def _sweep(verb: str, flags: Sequence[str], overrides: Sequence[str]) -> int:
    """Run a job for each point; one that fails is recorded, and the sweep goes on."""
    from arcloop.pipeline.sweeps.job import Job
    from arcloop.pipeline.sweeps.plan import plan
    from arcloop.pipeline.sweeps.record import Outcomes, unfinished

    planned = plan(verb, overrides)
    outcomes = Outcomes.of_this_process(planned.folder)
    job = Job(verb, planned.swept, outcomes, planned.gpus, os.getpid())
    try:
        _hydra(job, verb, [*flags, *overrides, *planned.extra])
    except Exception as error:
        if type(error).__name__ in ("TerminatedWorkerError", "BrokenProcessPool"):  # of joblib
            raise ResourceError(
                "a process of the sweep was killed; jobs that were under way ended with it",
                where=planned.folder,
                remedy="mind the memory (launcher.jobs= fewer); the same command goes on",
            ) from None
        raise
    finally:
        told = Outcomes(outcomes).take()
    if any(failure for _, failure, _ in told):
        raise unfinished(told, planned.folder)
    return GATE_NOT_PASSED if any(gate is False for *_, gate in told) else 0


def _hydra(job: Callable[[DictConfig], object], verb: str, arguments: Sequence[str]) -> None:
    before, sys.argv = sys.argv, [f"arcloop {verb}", *arguments]
    try:
        hydra.main(config_path=str(bundled("conf")), config_name="config", version_base="1.3")(
            job
        )()
    except (HydraException, OmegaConfBaseException) as error:
        raise as_config_error(error) from None
    finally:
        sys.argv = before
