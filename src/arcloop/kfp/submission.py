"""Submit the pipeline: `arcloop pipeline`, `python kubeflow/submit.py`.

Checks the command line, compiles the pipeline for a cluster and runs it there: through kfp.local
for cluster=local, otherwise on a KFP server, as a new version with a run or a recurring run.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import arcloop
from arcloop.artifacts.atomic import sha256_json
from arcloop.artifacts.writer import package_versions
from arcloop.config.composition import bundled
from arcloop.display.terminal import print_line
from arcloop.errors import ConfigError, report_errors
from arcloop.kfp.parameters import Request, check_parameters, read_request
from arcloop.kfp.pod import compute_fingerprint
from arcloop.kfp.settings import ClusterSettings, NotifySettings, cluster_settings, notify_settings

_HELP = """\
arcloop pipeline [GROUP=CHOICE] [KEY=VALUE] [mode=...] [schedule=...]

  cluster=local           run on this machine, each step in a process (default);
                          onprem, gke: run on a KFP server
  mode=run | compile      compile only writes the IR YAML
  schedule="0 0 * * 2"    a recurring run, here every Tuesday at midnight UTC
  notify=none | slack     the webhook that a message is posted to at the end of a run

All other overrides are those of `arcloop run`; see `arcloop --help`.
Exit codes: 0 done; 1 error in the data, the machine or the server; 2 error in the config;
3 the gate did not pass. ARCLOOP_TRACEBACK=1 shows the traceback of an error."""
GATE_NOT_PASSED = 3
_OPTIONS = {"mode": ("run", "compile"), "schedule": None}
_COMPILED = Path("runs/pipelines")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_DIGITS = 16


def main(argv: Sequence[str]) -> int:
    """Submit the pipeline.

    Args:
        argv: Overrides, `mode=` and `schedule=`.

    Returns:
        The exit code, see `arcloop pipeline --help`.
    """
    if any(word in ("-h", "--help") for word in argv):
        print(_HELP)
        return 0
    return report_errors(lambda: GATE_NOT_PASSED if submit(read_submission(argv)) is False else 0)


@dataclass(frozen=True)
class Submission:
    """A checked command line. Checking it does not import kfp.

    Attributes:
        request: Config and parameters.
        cluster: The cluster to run on.
        notify: The webhook.
        compile_only: Write the IR YAML and stop.
        cron: Six fields of the schedule of a recurring run, or None.
    """

    request: Request
    cluster: ClusterSettings
    notify: NotifySettings
    compile_only: bool
    cron: str | None

    @property
    def name(self) -> str:
        """Name of the run in the UI."""
        return str(self.request.plain["name"])

    @property
    def path(self) -> Path:
        """Path of the IR YAML."""
        choice = "local" if self.cluster.is_local else "cluster"
        return Path(self.cluster.folder or _COMPILED) / f"{self.cluster.pipeline}-{choice}.yaml"


def read_submission(argv: Sequence[str]) -> Submission:
    """Read and check a command line.

    Raises:
        ConfigError: The command line is invalid; the message lists every fault.
    """
    options, overrides = _split_options(argv)
    try:
        request = read_request(overrides)
    except ConfigError as cause:
        raise _suggest_option(cause, overrides) from None
    cluster = cluster_settings(request.plain["cluster"])
    if cluster.is_local:
        # In a local run, the image name is only the code's version in the cache key.
        cluster = dataclasses.replace(cluster, image=f"{cluster.image}-{source_hash()}")
    notify = notify_settings(request.plain["notify"])
    cron = kfp_schedule(options["schedule"]) if "schedule" in options else None
    submission = Submission(request, cluster, notify, options.get("mode") == "compile", cron)
    faults = list(_faults(submission))
    if faults:
        raise ConfigError("\n".join(faults), remedy="nothing was submitted")
    return submission


def source_hash() -> str:
    """Return a hash of arcloop's source and config files and of the package versions."""
    package = Path(arcloop.__file__).parent
    files = {
        f"{root.name}/{file.relative_to(root)}": hashlib.sha256(file.read_bytes()).hexdigest()
        for root in (package, bundled("conf"))
        for file in sorted(root.rglob("*"))
        if file.suffix in (".py", ".yaml", ".j2")
    }
    return sha256_json([files, package_versions()])[:_DIGITS]


def kfp_schedule(schedule: str) -> str:
    """Convert a cron schedule to the six fields of KFP: seconds first, weekdays by name.

    KFP numbers the weekdays from 0 to 6 and has no 7, so numbers and ranges become names.

    Args:
        schedule: Minute, hour, day of month, month and day of week, in UTC.

    >>> kfp_schedule("0 0 * * 2")
    '0 0 0 * * TUE'
    >>> kfp_schedule("*/15 6-18 * * SAT-SUN")
    '0 */15 6-18 * * SUN,SAT'

    Raises:
        ConfigError: It is not a cron schedule.
    """
    from cronsim import CronSim, CronSimError

    fields = re.sub(r"-SUN\b", "-7", schedule.upper()).split()  # at the end of a range, SUN is 7
    try:
        if len(fields) != 5:
            raise CronSimError("it needs five fields: minute hour day month weekday")
        if found := re.search(r"[L#]", " ".join([fields[2], fields[4]]).replace("JUL", "")):
            raise CronSimError(f"KFP does not support {found[0]}")
        days = CronSim(" ".join(fields), datetime.now(UTC)).weekdays
    except CronSimError as cause:
        raise ConfigError(
            f"schedule={schedule!r} is not a cron schedule: {cause}",
            remedy="write it as in crontab, e.g. schedule='0 0 * * 2' for Tuesday at midnight, UTC",
        ) from None
    if not fields[4].startswith("*"):
        numbers = sorted({day % 7 for day in days if isinstance(day, int)})
        fields[4] = ",".join(_WEEKDAYS[number] for number in numbers)
    return " ".join(["0", *fields])


def _split_options(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Separate `mode=` and `schedule=` from the overrides of the config."""
    options, overrides = {}, []
    for argument in argv:
        key, equals, value = argument.partition("=")
        if key in _OPTIONS:
            choices = _OPTIONS[key]
            if not equals or (choices and value not in choices):
                allowed = f" must be one of {', '.join(choices)}" if choices else " needs a value"
                raise ConfigError(f"{argument}{allowed}", remedy="see --help")
            options[key] = value
        elif not equals and not argument.startswith("~"):
            raise ConfigError(f"{argument!r} is not an override", remedy="write KEY=VALUE")
        else:
            overrides.append(argument)
    return options, overrides


def _suggest_option(cause: ConfigError, overrides: Sequence[str]) -> ConfigError:
    """Suggest mode or schedule if the unknown key of the error is similar to one of them."""
    for override in overrides:
        key = override.partition("=")[0]
        near = difflib.get_close_matches(key, _OPTIONS, n=1)
        if near and cause.what == f"there is no key {key}":
            return ConfigError(cause.what, where=cause.where, remedy=f"did you mean {near[0]}?")
    return cause


def _faults(submission: Submission) -> Iterator[str]:
    """Yield settings that are valid alone but not together or on this machine."""
    cluster, plain = submission.cluster, submission.request.plain
    if submission.cron and cluster.is_local:
        yield "schedule= needs a KFP server, e.g. cluster=onprem; cluster=local cannot repeat runs"
    variable = submission.notify.webhook_env
    runs_here = cluster.is_local and not submission.compile_only
    if variable and runs_here and not os.environ.get(variable):
        yield f"notify needs the webhook's URL in the environment variable {variable}"
    for key in ("root", "file"):
        path = plain["data"].get(key)
        is_bundled = path and "bundled" in str(submission.request.unresolved["data"][key])
        if path and not cluster.is_local and not is_bundled and not path.startswith("/"):
            yield f"data.{key}={path} must be an absolute path in the pods of the steps"
    if cluster.train == "trainjob":
        trainer = (plain["trainer"]["num_nodes"], plain["trainer"]["devices"])
        job = (cluster.trainjob.nodes, cluster.trainjob.processes)
        if trainer != job:
            yield (
                f"trainer.num_nodes, trainer.devices are {trainer[0]}, {trainer[1]}, but "
                f"cluster.trainjob.nodes, processes are {job[0]}, {job[1]}: make them equal"
            )


def submit(submission: Submission, started: Callable[[], None] = lambda: None) -> bool | None:
    """Compile the pipeline and, unless `compile_only`, run it.

    Args:
        submission: The checked command line.
        started: Called after a run was started.

    Returns:
        Whether the gate passed, after a local run; otherwise None.

    Raises:
        StepError: A step of a local run failed.
        SubmissionError: The server refused the request or did not answer.
    """
    if submission.compile_only:
        _compile(submission)
        print_line(f"compiled: {submission.path}")
        return None
    if submission.cluster.is_local:
        return _run_locally(submission, started)
    _run_on_server(submission, started)
    return None


def _compile(submission: Submission) -> dict[str, Any]:
    """Write the IR YAML, check the parameters against it, and return them."""
    from arcloop.kfp.pipeline import FINGERPRINT, compile_pipeline

    compile_pipeline(submission.cluster, submission.notify, submission.path)
    parameters: dict[str, Any] = dict(submission.request.parameters)
    if submission.compile_only:
        return parameters
    if submission.cluster.fingerprint == "client":
        parameters[FINGERPRINT] = compute_fingerprint(submission.request.config)
    check_parameters(submission.path, parameters)
    return parameters


def _run_locally(submission: Submission, started: Callable[[], None]) -> bool:
    from arcloop.kfp.local import run_pipeline, start_fork_server

    start_fork_server()  # it imports torch while kfp compiles
    parameters = _compile(submission)
    started()
    cluster = submission.cluster
    assert cluster.folder
    result = run_pipeline(submission.path, parameters, Path(cluster.folder), cache=cluster.cache)
    for line in result.report():
        print_line(line)
    return result.gate_passed


def _run_on_server(submission: Submission, started: Callable[[], None]) -> None:
    from arcloop.kfp.client import KfpClient

    server = KfpClient(submission.cluster)
    parameters = _compile(submission)
    uploaded = server.upload(submission.path)
    print_line(f"pipeline version: {uploaded.name}")
    if submission.cron:
        made, replaced = server.schedule(uploaded, parameters, submission.name, submission.cron)
        print_line(f"recurring run: {made}, {submission.cron}")
        for run_id in replaced:
            print_line(f"replaces the recurring run {run_id}")
    else:
        run_id = server.start(uploaded, parameters, submission.name)
        print_line(f"run: {submission.cluster.host}/#/runs/details/{run_id}")
    started()
