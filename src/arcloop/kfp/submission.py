"""Submit the pipeline: `arcloop pipeline`.

It checks the command line, compiles the pipeline for a cluster and runs it there: through kfp.local
for cluster=local, otherwise on a KFP server, as a new version with a run or a recurring run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcloop.artifacts.atomic import write_json
from arcloop.display.terminal import print_line
from arcloop.errors import GATE_NOT_PASSED, ConfigError, report_errors
from arcloop.kfp.config import ClusterSettings, NotifySettings, read_settings
from arcloop.kfp.local import run_pipeline, source_hash, start_fork_server
from arcloop.kfp.options import MULTIRUN, Options, split_options, suggest_option
from arcloop.kfp.parameters import FINGERPRINT, divide_overrides
from arcloop.kfp.placement.devices import derive_trainer, device_faults
from arcloop.kfp.placement.mounts import derive_serving, path_faults
from arcloop.kfp.pod.steps import compute_fingerprint
from arcloop.kfp.sweeps.study import has_password
from arcloop.kfp.vertex import vertex_faults

_HELP = """\
arcloop pipeline [GROUP=CHOICE] [KEY=VALUE] [mode=...] [wait=true] [schedule=...]
arcloop trigger data.root=... [every=SECONDS] [the overrides of `arcloop pipeline`]

  cluster=local           run on this machine, each step in a process (default);
                          onprem, gke: run on a KFP server
  mode=run | compile      compile only writes the IR YAML
  -m                      every combination of comma-separated values: a leaderboard, and the best
                          is deployed; on a server, cluster.sweep=runs needs wait=true for this;
                          with sweep=optuna, the values are proposed from the results so far
  wait=true               follow the run on the server to its end
  mode=status run=ID      show a run; with wait=true, follow it
  mode=terminate run=ID   end a run
  schedule="0 0 * * 2"    a recurring run, here every Tuesday at midnight (cluster.timezone)
  mode=schedules          list the recurring runs; mode=unschedule name=NAME removes one,
                          mode=refresh moves all of them to this code and image
  mode=clean keep_days=30 remove runs that were not used for 30 days from the volume of the
                          cluster; with dry_run=true, only print them; with schedule=, repeatedly
  notify=none | slack     the webhook that a message is posted to at the end of a run

`arcloop trigger` starts a run if the content of the data source differs from that of the last run
that this command started. With every=SECONDS, it repeats this check until it is interrupted.
All other overrides are those of `arcloop run`; see `arcloop --help`.
Exit codes: 0 done; 1 error in the data, the machine or the server; 2 error in the config;
3 the gate did not pass. ARCLOOP_TRACEBACK=1 shows the traceback of an error."""
_IMAGE_DIGEST = r"[\w.:/-]+@sha256:[0-9a-f]{64}"
COMPILED = Path("runs/pipelines")


@dataclass(frozen=True)
class Submission:
    """A checked command line. Checking it does not import kfp.

    Attributes:
        config: The resolved config.
        parameters: Pipeline parameter -> overrides of that config group.
        cluster: The cluster to run on.
        notify: The webhook.
        options: The options that are no overrides.
        cron: Six fields of the schedule of a recurring run, or None.
        command: The command line.
        derived: Overrides that follow from the settings of the cluster.
    """

    config: Mapping[str, Any]
    parameters: Mapping[str, Any]
    cluster: ClusterSettings
    notify: NotifySettings
    options: Options
    cron: str | None
    command: Sequence[str]
    derived: Sequence[str] = ()

    @property
    def compile_only(self) -> bool:
        """Whether to write the IR YAML and stop."""
        return self.options.mode == "compile"

    @property
    def path(self) -> Path:
        """Path of the IR YAML."""
        choice = "local" if self.cluster.is_local else "cluster"
        return Path(self.cluster.folder or COMPILED) / f"{self.cluster.pipeline}-{choice}.yaml"


def main(argv: Sequence[str]) -> int:
    """Submit the pipeline.

    Args:
        argv: Overrides and options.

    Returns:
        The exit code, see `arcloop pipeline --help`.
    """

    def work() -> int:
        if MULTIRUN.isdisjoint(argv):
            return submit(read_submission(argv))
        from arcloop.kfp.sweeps.combinations import run_sweep

        return run_sweep(argv)

    return run_verb(argv, work)


def run_verb(argv: Sequence[str], work: Callable[[], int]) -> int:
    """Print the help, or call `work` and report its error; return the exit code."""
    if any(word in ("-h", "--help") for word in argv):
        print(_HELP)
        return 0
    return report_errors(work)


def read_submission(argv: Sequence[str], *, announce: bool = True) -> Submission:
    """Read and check a command line.

    Args:
        argv: Overrides and options.
        announce: Print the overrides that are derived from the cluster.

    Raises:
        ConfigError: The command line is invalid; the message lists every fault.
    """
    options, overrides = split_options(argv)
    try:
        config, parameters = divide_overrides(overrides)
    except ConfigError as cause:
        raise suggest_option(cause, overrides) from None
    cluster = read_settings(ClusterSettings, config["cluster"], "cluster")
    derived = derive_trainer(cluster, overrides) + derive_serving(config, cluster, overrides)
    derived = derived if options.needs_pipeline else []
    if derived:
        config, parameters = divide_overrides([*overrides, *derived])
        if announce:
            print_line(f"{' '.join(derived)}: derived from the settings of the cluster")
    if cluster.is_local:
        # In a local run, the image name is only the code's version in the cache key.
        cluster = cluster.model_copy(update={"image": f"{cluster.image}-{source_hash()}"})
    if options.mode == "clean":
        # The cleaning is a pipeline with another name. With the same name, its schedule would
        # replace that of the steps.
        cluster = cluster.model_copy(update={"pipeline": f"{cluster.pipeline}-clean"})
        config = {**config, "name": cluster.pipeline}
    notify = read_settings(NotifySettings, config["notify"], "notify")
    cron = None
    if options.schedule is not None:
        from arcloop.kfp.server.schedules import kfp_schedule

        cron = kfp_schedule(options.schedule, cluster.timezone)
    command = ("arcloop", "pipeline", *argv)
    submission = Submission(config, parameters, cluster, notify, options, cron, command, derived)
    if faults := list(_faults(submission)):
        raise ConfigError("\n".join(faults), remedy="nothing was submitted")
    return submission


def _faults(submission: Submission) -> Iterator[str]:
    """Yield settings that are valid alone but not together or on this machine."""
    cluster, config, mode = submission.cluster, submission.config, submission.options.mode
    if cluster.is_local and mode not in ("run", "compile"):
        yield f"mode={mode} needs a KFP server, e.g. cluster=onprem"
    if mode == "clean" and cluster.storage != "pvc" and not cluster.checkpoints:
        yield (
            f"mode=clean removes runs from a volume, but cluster.storage={cluster.storage}: "
            "set cluster.storage=pvc, or add a lifecycle rule to the object store"
        )
    uses_image = (submission.options.needs_pipeline or mode == "clean") and not cluster.is_local
    if uses_image and not re.fullmatch(_IMAGE_DIGEST, cluster.image or ""):
        yield (
            f"cluster.image={cluster.image} must contain its digest, which is the version of the "
            "code in the cache key: set cluster.image=registry/arcloop@sha256:... or ARCLOOP_IMAGE"
        )
    if not submission.options.needs_pipeline:
        return
    if submission.cron and cluster.is_local:
        yield "schedule= needs a KFP server, e.g. cluster=onprem; cluster=local cannot repeat runs"
    variable = submission.notify.webhook_env
    runs_here = cluster.is_local and not submission.compile_only
    if variable and runs_here and not os.environ.get(variable):
        yield f"notify needs the webhook's URL in the environment variable {variable}"
    yield from path_faults(config, submission.parameters, cluster)
    submits = not submission.compile_only
    yield from vertex_faults(config, cluster, submission.notify, submits=submits)
    limited = [name for name, step in cluster.steps.items() if step.ephemeral]
    if limited and cluster.storage == "pvc":
        yield (
            f"cluster.steps.{limited[0]}.ephemeral limits artifacts on the disk of a node, but "
            "cluster.storage=pvc stores them on the volume: remove it"
        )
    yield from _training_faults(cluster)
    if has_password(cluster.study):
        yield (
            "cluster.study contains a password: set it to the name of an environment variable with "
            "the URL, which cluster.secrets adds to the steps"
        )
    yield from device_faults(config, cluster)


def _training_faults(cluster: ClusterSettings) -> Iterator[str]:
    if cluster.train == "trainjob" and not cluster.is_local and cluster.storage != "pvc":
        yield "cluster.train=trainjob needs cluster.storage=pvc: its nodes share a volume"
    if cluster.train == "trainjob" and cluster.pull_policy != "IfNotPresent":
        yield (
            f"cluster.pull_policy={cluster.pull_policy} has no effect on the nodes of a TrainJob, "
            "whose API has no pull policy: use IfNotPresent; the digest names the image"
        )
    if cluster.checkpoints and cluster.is_local:
        yield "cluster.checkpoints has no effect with cluster=local, which mounts no volumes"


def submit(submission: Submission, started: Callable[[], None] = lambda: None) -> int:
    """Compile the pipeline and run it, or do what the mode says.

    Args:
        submission: The checked command line.
        started: Called when the run has been started.

    Returns:
        The exit code: 3 if the run has ended and the gate did not pass.

    Raises:
        ArcloopError: A step of a local run failed, or the server refused or did not answer.
    """
    cluster, compile_only = submission.cluster, submission.compile_only
    if cluster.is_local and not compile_only:
        start_fork_server()  # it imports torch while kfp compiles
    from arcloop.kfp.commands import manage, start
    from arcloop.kfp.pipeline import compile_pipeline
    from arcloop.kfp.server.client import KfpClient

    server = None if cluster.is_local or compile_only else KfpClient(cluster)
    if server and not submission.options.needs_pipeline:
        return manage(server, submission)
    parameters = resolve_parameters(submission)
    compile_pipeline(cluster, submission.notify, submission.path, parameters)
    if compile_only:
        values = submission.path.with_suffix(".params.json")
        write_json(values, parameters)
        print_line(f"compiled: {submission.path}, its parameters: {values}")
        return 0
    if server:
        return start(server, submission, parameters, started)
    started()
    assert cluster.folder
    folder = Path(cluster.folder)
    passed = run_pipeline(submission.path, parameters, folder, cache=cluster.cache)
    return 0 if passed else GATE_NOT_PASSED


def resolve_parameters(submission: Submission) -> dict[str, Any]:
    """Return the values of all parameters of the pipeline, with the fingerprint if it is one.

    Raises:
        DataError: The data source does not exist.
    """
    parameters: dict[str, Any] = dict(submission.parameters)
    if submission.cluster.fingerprint == "client":
        parameters[FINGERPRINT] = compute_fingerprint(submission.parameters["data"])
    return parameters
