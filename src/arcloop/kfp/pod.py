"""Functions that the components call in the pod of a task.

On a cluster, the functions below run in the process of the pod. In a local run, the environment
variable `TASK_SERVER` contains the address of the server in `arcloop.kfp.local`, and `call` sends
the work to a process that has already imported torch. This module imports neither kfp nor torch, so
that the process of a task starts fast.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import tempfile
import traceback
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcloop.errors import ArcloopError

if TYPE_CHECKING:
    from kfp.dsl import HTML, Artifact, ClassificationMetrics, Markdown, Metrics
    from omegaconf import DictConfig

TASK_SERVER = "ARCLOOP_TASK_SERVER"
VOLUME = "ARCLOOP_VOLUME"
"""Mount path of the shared volume, where outputs are written to it."""
_NOTIFIED_METRICS = ("top1", "map_at_r", "eer")
Overrides = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Call:
    """A function call for another process.

    Attributes:
        task: Name of the task that makes the call.
        function: A function of a module.
        arguments: Its positional arguments.
        folder: Working directory of the call.
        environment: Environment variables of the call.
    """

    task: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    folder: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    """The result of a call, or the message of its error."""

    result: Any = None
    error: str = ""


class TaskError(ArcloopError):
    """Raised if a task failed in the process that the task server started for it."""


def call(task: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function here or, in a local run, in a process of the task server.

    Raises:
        TaskError: The call failed in the process of the task server.
    """
    address = os.environ.get(TASK_SERVER)
    if address is None:
        return function(*arguments)
    with Client(address) as server:
        server.send(Call(task, function, arguments, str(Path.cwd()), dict(os.environ)))
        reply: Reply = server.recv()
    if reply.error:
        raise TaskError(reply.error)
    return reply.result


def serve_call(request: Call, log: Path, replies: Connection) -> None:
    """Execute a call in this process and send the `Reply`.

    Args:
        request: The call, with its working directory and environment.
        log: File that standard output and standard error are appended to.
        replies: Connection to the task server.
    """
    with open(log, "ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    try:
        reply = Reply(request.function(*request.arguments))
    except BaseException as cause:  # noqa: BLE001 - every error is an error of the task
        traceback.print_exc()
        reply = Reply(error=_describe(cause))
    sys.stdout.flush()
    replies.send(reply)


def _describe(cause: BaseException) -> str:
    name = type(cause).__name__
    if isinstance(cause, ArcloopError):
        return str(cause)
    return f"{name}: {cause}" if str(cause) else name


def run_step(
    name: str, overrides: Overrides, inputs: Mapping[str, Artifact], output: Artifact
) -> None:
    """Run a step and record the hash of its artifact in KFP's metadata.

    Args:
        name: A key of `STEPS`.
        overrides: Hydra overrides of each group that the step reads.
        inputs: Role -> input artifact.
        output: Artifact to write.
    """
    paths = {role: Path(artifact.path) for role, artifact in inputs.items()}
    target = Path(output_path(output))
    output.metadata["sha256"] = call(name, _run_step, name, _flatten(overrides), paths, target)


def _run_step(name: str, overrides: list[str], inputs: Mapping[str, Path], output: Path) -> str:
    from arcloop.pipeline.steps import run_step as run

    return run(name, overrides, inputs, output).sha256


def train_on_nodes(overrides: Overrides, store: Artifact, run: Artifact, settings: str) -> None:
    """Train on the nodes of a TrainJob, which mount the same shared volume as this pod.

    Args:
        overrides: Hydra overrides of each group that training reads.
        store: Input artifact.
        run: Output artifact.
        settings: JSON of `arcloop.kfp.pipeline.trainjob_settings`.
    """
    from arcloop.kfp.trainjob import train

    made = train(_flatten(overrides), Path(store.path), Path(output_path(run)), settings)
    run.metadata["sha256"] = made.sha256


def deploy(overrides: Overrides, inputs: Mapping[str, Artifact]) -> None:
    """Deploy a run whose gallery, index and evaluation are artifacts of other tasks."""
    paths = {role: Path(artifact.path) for role, artifact in inputs.items()}
    call("deploy", _deploy, _flatten(overrides), paths)


def _deploy(overrides: list[str], inputs: Mapping[str, Path]) -> None:
    """Run `arcloop deploy` on a temporary folder that links all inputs into one run."""
    from arcloop.serving.deploy import main

    os.environ["ARCLOOP_TRACEBACK"] = "1"  # makes `main` raise its errors
    with tempfile.TemporaryDirectory() as run:
        for role in ("gallery", "index", "evaluation"):
            Path(run, role).symlink_to(inputs[role])
        for entry in inputs["run"].iterdir():
            if entry.name not in inputs:
                Path(run, entry.name).symlink_to(entry)
        code = main([f"run_dir={run}", *overrides])
    if code:
        raise SystemExit(code)


def read_fingerprint(overrides: Overrides) -> str:
    """Return the fingerprint of the data source that the overrides describe."""
    fingerprint: str = call("compute_fingerprint", _compose_and_compute, _flatten(overrides))
    return fingerprint


def _compose_and_compute(overrides: list[str]) -> str:
    from arcloop.config.composition import compose_config

    return compute_fingerprint(compose_config(overrides))


def compute_fingerprint(config: DictConfig) -> str:
    """Return the hash of the content and the settings of the data source, as in the store's name.

    Raises:
        DataError: The source does not exist.
    """
    from arcloop.data import store_key
    from arcloop.pipeline.steps import build

    return store_key(build(config, "data"))


def output_path(artifact: Artifact) -> str:
    """Return the path of an output artifact, on the shared volume if there is one.

    KFP does not upload or download an artifact whose URI is not that of an object store.
    """
    volume = os.environ.get(VOLUME)
    if volume:
        inside = artifact.uri.partition("://")[2] or artifact.uri.strip("/")
        artifact.uri = f"{volume}/{inside}"
    return str(artifact.path)


def show_page(folder: Artifact, report: HTML) -> None:
    """Show the report page in KFP's UI."""
    shutil.copyfile(Path(folder.path) / "report.html", report.path)


def show_evaluation(
    evaluation: Artifact,
    metrics: Metrics,
    confusion: ClassificationMetrics,
    roc: ClassificationMetrics,
    summary: Markdown,
) -> bool:
    """Show metrics, confusion matrix, ROC and a summary in KFP's UI.

    Returns:
        Whether the gate passed.
    """
    folder = Path(evaluation.path)
    values, gate = _read_result(folder)
    for name, value in values.items():
        metrics.log_metric(name, value)
    header, *rows = _read_csv(folder / "confusion_matrix.csv")
    confusion.log_confusion_matrix(header[1:], [[int(cell) for cell in row[1:]] for row in rows])
    if (folder / "roc.csv").exists():
        points = [[float(cell) for cell in row] for row in _read_csv(folder / "roc.csv")[1:]]
        far, tar, threshold = map(list, zip(*points, strict=True))
        roc.log_roc_curve(far, tar, threshold)
    passed = gate["passed"] is True
    lines = [f"# The gate {'passed' if passed else 'did not pass'}", ""]
    lines += [f"- {reason}" for reason in gate["reasons"]]
    lines += ["", "| metric | value |", "|---|---|"]
    lines += [f"| {name} | {value:.6g} |" for name, value in values.items()]
    Path(summary.path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    # The cache of kfp.local ignores an entry if the file of one of its outputs is missing.
    for artifact in (metrics, confusion, roc):
        Path(artifact.path).write_text(json.dumps(artifact.metadata), encoding="utf-8")
    return passed


def notify_result(
    webhook_env: str, timeout_s: float, run_name: str, outcome: str, evaluation: Artifact
) -> None:
    """Post the metrics and the gate decision of a run."""
    call("notify", _notify_result, webhook_env, timeout_s, run_name, outcome, evaluation.path)


def _notify_result(
    webhook_env: str, timeout_s: float, run_name: str, outcome: str, evaluation: str
) -> None:
    metrics, gate = _read_result(Path(evaluation))
    shown = [f"{name} {metrics[name]:.4f}" for name in _NOTIFIED_METRICS if name in metrics]
    lines = [f"{run_name}: {outcome}", ", ".join(shown), *gate["reasons"]]
    _post(webhook_env, timeout_s, "\n".join(lines))


def notify_failure(webhook_env: str, timeout_s: float, run_name: str, cause: str) -> None:
    """Post the error message of a failed run."""
    text = f"{run_name}: failed, nothing was deployed\n{cause or 'see its log'}"
    call("notify_failure", _post, webhook_env, timeout_s, text)


def _post(webhook_env: str, timeout_s: float, text: str) -> None:
    """Post a message; if this fails, print the type of the error and continue."""
    try:
        request = urllib.request.Request(  # noqa: S310 - an administrator configures the URL
            os.environ[webhook_env],
            json.dumps({"text": text}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=timeout_s).close()  # noqa: S310
    except Exception as cause:  # noqa: BLE001 - some messages contain the URL, which is a secret
        print(f"the notification was not delivered: {type(cause).__name__}")


def _read_result(evaluation: Path) -> tuple[dict[str, float], dict[str, Any]]:
    metrics = json.loads((evaluation / "metrics.json").read_bytes())
    return metrics, json.loads((evaluation / "gate.json").read_bytes())


def _read_csv(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def _flatten(overrides: Overrides) -> list[str]:
    return [override for group in overrides for override in group]
