"""Submit the pipeline: `arcloop pipeline`.

It checks the command line, compiles the pipeline for a cluster and runs it there: through kfp.local
for cluster=local, otherwise on a KFP server, as a new version with a run or a recurring run.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcloop.artifacts.atomic import write_json
from arcloop.display.terminal import print_line
from arcloop.errors import ConfigError, report_errors
from arcloop.kfp.config import ClusterSettings, NotifySettings, read_settings
from arcloop.kfp.devices import derive_trainer, device_faults
from arcloop.kfp.local import run_pipeline, source_hash, start_fork_server
from arcloop.kfp.mounts import path_faults
from arcloop.kfp.parameters import divide_overrides
from arcloop.kfp.pod import compute_fingerprint

_HELP = """\
arcloop pipeline [GROUP=CHOICE] [KEY=VALUE] [mode=...] [schedule=...]
arcloop trigger data.root=... [every=SECONDS] [the overrides of `arcloop pipeline`]

  cluster=local           run on this machine, each step in a process (default);
                          onprem, gke: run on a KFP server
  mode=run | compile      compile only writes the IR YAML
  schedule="0 0 * * 2"    a recurring run, here every Tuesday at midnight UTC
  notify=none | slack     the webhook that a message is posted to at the end of a run

`arcloop trigger` starts a run if the content of the data source differs from that of the last run
that this command started. With every=SECONDS, it repeats this check until it is interrupted.
All other overrides are those of `arcloop run`; see `arcloop --help`.
Exit codes: 0 done; 1 error in the data, the machine or the server; 2 error in the config;
3 the gate did not pass. ARCLOOP_TRACEBACK=1 shows the traceback of an error."""
GATE_NOT_PASSED = 3
_MODES = ("run", "compile")
_OPTIONS = ("mode", "schedule")
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
        compile_only: Write the IR YAML and stop.
        cron: Six fields of the schedule of a recurring run, or None.
    """

    config: Mapping[str, Any]
    parameters: Mapping[str, list[str]]
    cluster: ClusterSettings
    notify: NotifySettings
    compile_only: bool
    cron: str | None

    @property
    def path(self) -> Path:
        """Path of the IR YAML."""
        choice = "local" if self.cluster.is_local else "cluster"
        return Path(self.cluster.folder or COMPILED) / f"{self.cluster.pipeline}-{choice}.yaml"


def main(argv: Sequence[str]) -> int:
    """Submit the pipeline.

    Args:
        argv: Overrides, `mode=` and `schedule=`.

    Returns:
        The exit code, see `arcloop pipeline --help`.
    """
    return run_verb(argv, lambda: GATE_NOT_PASSED if submit(read_submission(argv)) is False else 0)


def run_verb(argv: Sequence[str], work: Callable[[], int]) -> int:
    """Print the help, or call `work` and report its error; return the exit code."""
    if any(word in ("-h", "--help") for word in argv):
        print(_HELP)
        return 0
    return report_errors(work)


def read_submission(argv: Sequence[str]) -> Submission:
    """Read and check a command line.

    Raises:
        ConfigError: The command line is invalid; the message lists every fault.
    """
    options, overrides = _split_options(argv)
    try:
        config, parameters = divide_overrides(overrides)
    except ConfigError as cause:
        raise _suggest_option(cause, overrides) from None
    cluster = read_settings(ClusterSettings, config["cluster"], "cluster")
    if derived := derive_trainer(cluster, overrides):
        config, parameters = divide_overrides([*overrides, *derived])
        print_line(f"{' '.join(derived)}: derived from cluster.train and cluster.steps.train.gpus")
    if cluster.is_local:
        # In a local run, the image name is only the code's version in the cache key.
        cluster = cluster.model_copy(update={"image": f"{cluster.image}-{source_hash()}"})
    notify = read_settings(NotifySettings, config["notify"], "notify")
    cron = None
    if "schedule" in options:
        from arcloop.kfp.client import kfp_schedule

        cron = kfp_schedule(options["schedule"])
    compile_only = options.get("mode") == "compile"
    submission = Submission(config, parameters, cluster, notify, compile_only, cron)
    if faults := list(_faults(submission)):
        raise ConfigError("\n".join(faults), remedy="nothing was submitted")
    return submission


def _split_options(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Separate the options of the commands from the overrides of the config."""
    pairs = [argument.partition("=") for argument in argv]
    options = {key: value for key, _, value in pairs if key in _OPTIONS}
    if options.get("mode", "run") not in _MODES:
        raise ConfigError(
            f"mode={options['mode']} must be one of run, compile", remedy="see --help"
        )
    return options, ["".join(pair) for pair in pairs if pair[0] not in _OPTIONS]


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
    cluster, config = submission.cluster, submission.config
    if submission.cron and cluster.is_local:
        yield "schedule= needs a KFP server, e.g. cluster=onprem; cluster=local cannot repeat runs"
    variable = submission.notify.webhook_env
    runs_here = cluster.is_local and not submission.compile_only
    if variable and runs_here and not os.environ.get(variable):
        yield f"notify needs the webhook's URL in the environment variable {variable}"
    if not cluster.is_local:
        yield from path_faults(config, submission.parameters, cluster)
    if not cluster.is_local and not re.fullmatch(_IMAGE_DIGEST, cluster.image or ""):
        yield (
            f"cluster.image={cluster.image} must contain its digest, which is the version of the "
            "code in the cache key: set cluster.image=registry/arcloop@sha256:... or ARCLOOP_IMAGE"
        )
    if cluster.train == "trainjob" and not cluster.is_local and cluster.storage != "pvc":
        yield "cluster.train=trainjob needs cluster.storage=pvc: its nodes share a volume"
    yield from device_faults(config, cluster)


def submit(submission: Submission, started: Callable[[], None] = lambda: None) -> bool | None:
    """Compile the pipeline and, unless `compile_only`, run it.

    Args:
        submission: The checked command line.
        started: Called when the run has been started.

    Returns:
        Whether the gate passed, after a local run; otherwise None.

    Raises:
        ArcloopError: A step of a local run failed, or the server refused or did not answer.
    """
    cluster, runs = submission.cluster, not submission.compile_only
    if runs and cluster.is_local:
        start_fork_server()  # it imports torch while kfp compiles
    from arcloop.kfp.client import KfpClient
    from arcloop.kfp.pipeline import FINGERPRINT, compile_pipeline

    server = KfpClient(cluster) if runs and not cluster.is_local else None
    parameters: dict[str, Any] = dict(submission.parameters)
    if cluster.fingerprint == "client":
        parameters[FINGERPRINT] = compute_fingerprint(submission.parameters["data"])
    compile_pipeline(cluster, submission.notify, submission.path, parameters)
    if not runs:
        values = submission.path.with_suffix(".params.json")
        write_json(values, parameters)
        print_line(f"compiled: {submission.path}, its parameters: {values}")
        return None
    if server is None:
        started()
        assert cluster.folder
        folder = Path(cluster.folder)
        return run_pipeline(submission.path, parameters, folder, cache=cluster.cache)
    server.submit(submission.path, parameters, submission.config["name"], submission.cron)
    started()
    return None
