"""Run a verb with Hydra: one job, or in a sweep one job for each combination of values."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import hydra
from hydra.core.hydra_config import HydraConfig
from joblib.externals.loky import get_reusable_executor
from omegaconf import DictConfig

from arcloop.artifacts import JOB_LOG
from arcloop.config.composition import (
    CONFIG_ERRORS,
    as_config_error,
    check_config,
    parse_overrides,
    register_schema,
    require_single_values,
)
from arcloop.config.files import bundled
from arcloop.config.origin import set_origin
from arcloop.config.recorded import find_run_dir, recorded_overrides
from arcloop.config.schema import Config
from arcloop.display.redirect import keep_error_stream
from arcloop.display.terminal import print_line
from arcloop.distributed import threads
from arcloop.errors import GATE_NOT_PASSED, ConfigError, ResourceError
from arcloop.pipeline.chains import FROM_RUN, VerbResult, run_verb
from arcloop.pipeline.steps import ALL_STEPS

_MULTIRUN = ("-m", "--multirun", "hydra.mode=MULTIRUN")
_SHOWING = (
    "--cfg", "-c", "--info", "-i", "--resolve", "--package", "-p", "--run", "-r", "--version",
    "--hydra-help", "--shell-completion", "-sc",
)  # fmt: skip
"""Flags of Hydra that show something instead of running a job, or that exclude `-m`."""
_NOT_IN_STEPS = ("threads", "run_dir", "name", "experiment", "sweep", "launcher")
"""Keys that are allowed although no step reads them: they find run and jobs, or apply to all."""


def launch(verb: str, arguments: Sequence[str]) -> int:
    """Compose the config with Hydra's command line, run the verb, and return the exit code.

    Raises:
        ArcloopError: The config is invalid or the work failed; in a sweep, of any job.
    """
    register_schema()
    # Limit how long idle OpenMP threads busy-wait, which takes CPU time from other processes.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Without this, Hydra prints errors itself and exits; `main` prints all errors in one format.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    flags = [a for a in arguments if a not in overrides]
    _require_read(verb, overrides)
    if "--experimental-rerun" in flags:
        raise ConfigError(
            "--experimental-rerun is not supported", remedy="use `arcloop reproduce RUN_DIR`"
        )
    if {*_MULTIRUN[:2]} & {*flags} or _MULTIRUN[2] in overrides:
        shows = any(flag.partition("=")[0] in _SHOWING for flag in flags)
        return (_show_first_job if shows else _sweep)(verb, flags, overrides)
    return _single(verb, flags, overrides)


def _require_read(verb: str, overrides: Sequence[str]) -> None:
    """Check that a verb that works on a finished run reads all keys that are given.

    Raises:
        ConfigError: A key has no effect, because the run was made with another value.
    """
    if verb not in FROM_RUN:
        return
    read = set(ALL_STEPS[verb].reads)
    if verb == "evaluate":
        read |= {"data", "store_dir", "stores_dir"}
    known = Config.__dataclass_fields__.keys() - read - set(_NOT_IN_STEPS)
    keys = [override.key_or_group for override in parse_overrides(overrides)]
    names = () if "run_dir" in keys else ("data", "data.name")  # of the run
    if unread := [k for k in keys if k.partition(".")[0] in known and k not in names]:
        raise ConfigError(
            f"`arcloop {verb}` works on a finished run and does not read {', '.join(unread)}",
            remedy=f"it reads {', '.join(sorted(read))}; train a run to change other settings",
        )


def _show_first_job(verb: str, flags: Sequence[str], overrides: Sequence[str]) -> int:
    """Show the config of the first job of a sweep, which Hydra itself refuses with `-m`.

    Raises:
        ConfigError: No key is swept, a key is invalid, or a flag excludes `-m`.
    """
    from arcloop.pipeline.sweeps.plan import first_job

    if {"--run", "-r"} & {*flags}:
        raise ConfigError("-m and --run exclude each other", remedy="omit one of them")
    flags = [flag for flag in flags if flag not in _MULTIRUN]
    overrides = [override for override in overrides if override not in _MULTIRUN]
    point, overrides = first_job(verb, overrides)
    print_line(f"the first job: {point}")
    return _single(verb, flags, overrides)


def _single(verb: str, flags: Sequence[str], overrides: Sequence[str]) -> int:
    """Run one job and return the exit code."""
    require_single_values(overrides)
    command, given = shlex.join(["arcloop", verb, *flags, *overrides]), overrides
    run_dir = find_run_dir(overrides) if verb in FROM_RUN else None
    if run_dir is not None:
        overrides = [*recorded_overrides(run_dir, overrides), *overrides]
    failures: list[Exception] = []
    outcomes: list[VerbResult] = []

    def job(config: DictConfig) -> None:
        try:
            if run_dir is not None:
                config.run_dir = str(run_dir)
            check_config(config, overrides)
            set_origin(config, command, given)
            outcomes.append(run_verb(verb, config, list(HydraConfig.get().overrides.task)))
        except Exception as error:  # noqa: BLE001 - raised again below, outside Hydra
            failures.append(error)

    try:
        _run_hydra(job, verb, [] if "--hydra-help" in flags else overrides, flags)
    except ValueError as cause:  # Hydra refuses a combination of flags
        raise ConfigError(str(cause), remedy="see `arcloop --help`") from cause
    if failures:
        raise failures[0]
    return GATE_NOT_PASSED if any(o.gate_passed is False for o in outcomes) else 0


def _sweep(verb: str, flags: Sequence[str], overrides: Sequence[str]) -> int:
    """Run a job for each combination. A job that fails is recorded and the sweep continues."""
    from arcloop.pipeline.sweeps.job import Job, sweep_error
    from arcloop.pipeline.sweeps.plan import TRAINING, plan
    from arcloop.pipeline.sweeps.progress import SweepProgress
    from arcloop.pipeline.sweeps.sweep_record import SweepRecord

    planned, variable = plan(verb, overrides), os.environ.get(threads.VARIABLE)
    command = shlex.join(["arcloop", verb, *flags, *overrides])
    planned.folder.mkdir(parents=True, exist_ok=True)
    record = SweepRecord.open(planned.folder, planned.threads)
    print_line(f"{planned.total} jobs in {planned.folder}")
    if "hydra.verbose=true" not in overrides:
        print_line(f"output of each job: {JOB_LOG} in its folder, or here with hydra.verbose=true")
    with (
        TemporaryDirectory(prefix=".results-", dir=planned.folder) as results,
        keep_error_stream() as stream,
        SweepProgress(
            Path(results), planned.total, planned.at_once, planned.monitor, planned.mode, stream
        ) as progress,
    ):
        job = Job(
            verb, planned.swept, Path(results), planned.gpus, planned.in_runs, os.getpid(), record,
            command, planned.objectives,
        )  # fmt: skip
        try:
            _run_hydra(job, verb, [*overrides, *planned.extra], flags)
        except Exception as error:
            # Exceptions of joblib, which is optional, so they are compared by name.
            if type(error).__name__ not in ("TerminatedWorkerError", "BrokenProcessPool"):
                raise
            raise ResourceError(
                "a process of the sweep was killed, and the running jobs ended with it",
                where=planned.folder,
                remedy="reduce launcher.jobs if memory ran out, and repeat the command",
            ) from None
        finally:
            # joblib keeps its processes for the next sweep of this process, which may have another
            # current directory and environment.
            get_reusable_executor(reuse=True).shutdown(wait=True)
            threads.restore_variable(variable)
    records = progress.records
    if verb in TRAINING:
        from arcloop.pipeline.leaderboard.command import finish_sweep

        finish_sweep(planned.folder)
    if failed := sweep_error(records, planned.folder):
        raise failed
    return GATE_NOT_PASSED if any(record.gate_passed is False for record in records) else 0


def _run_hydra(
    job: Callable[[DictConfig], object], verb: str, overrides: Sequence[str], flags: Sequence[str]
) -> None:
    """Run `job` through `hydra.main`, which reads the arguments from `sys.argv`."""
    # The flags are last, because the value of --info is optional.
    before, sys.argv = sys.argv, [f"arcloop {verb}", *overrides, *flags]
    try:
        hydra.main(config_path=str(bundled("conf")), config_name="config", version_base="1.3")(
            job
        )()
    except CONFIG_ERRORS as error:
        raise as_config_error(error, overrides) from None
    finally:
        sys.argv = before
