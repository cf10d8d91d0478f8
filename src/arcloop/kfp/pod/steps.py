"""Functions that the components call in the pod of a task.

On a cluster, the functions below run in the process of the pod. In a local run, the environment
variable ARCLOOP_TASK_SERVER contains the address of the server in `arcloop.kfp.local`, and `call`
sends the work to a process that has already imported torch. This module imports neither kfp nor
torch, so that the process of a task starts fast.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Client
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcloop.artifacts.metrics import read_metrics
from arcloop.config.project import VARIABLE, project_hash
from arcloop.errors import ArcloopError, ConfigError, raise_terminated
from arcloop.kfp.pod.lineage import properties
from arcloop.kfp.pod.storage import in_use, input_folder, output_folder, publish

if TYPE_CHECKING:
    from kfp.dsl import Artifact, ClassificationMetrics, Markdown, Metrics

TASK_SERVER = "ARCLOOP_TASK_SERVER"
_TERMINATION_MESSAGE = Path("/dev/termination-log")
"""Kubernetes' default of `terminationMessagePath`; it exists only in a pod."""
_MAX_MESSAGE_BYTES = 4096
STORES = "ARCLOOP_STORES"
"""Environment variable with the folder that a relative `deploy.model_store` is in."""
PROJECT_HASH = "ARCLOOP_PROJECT_HASH"
"""Environment variable with `project_hash` of the project that the pipeline was compiled in."""
_MAX_CONFUSION = 100  # classes
_ROLES = ("store", "run", "gallery", "index", "evaluation")


def call(task: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function here or, in a local run, in a process of the task server.

    Args:
        task: Name of the task.
        function: A function of a module.
        *arguments: Its arguments.

    Raises:
        ConfigError: The image contains another project than that of the pipeline.
        ArcloopError: The call failed in the process of the task server.
    """
    address = os.environ.get(TASK_SERVER)
    if address is None:
        try:
            _require_same_project()
            return function(*arguments)
        except BaseException as cause:
            _record_error(task, cause)
            raise
    with Client(address) as server:
        server.send((task, dict(os.environ), function, arguments))
        result, error = server.recv()
    if error:
        raise ArcloopError(error)
    return result


def _require_same_project() -> None:
    """Check that the image contains the project that the pipeline was compiled in."""
    expected, found = os.environ.get(PROJECT_HASH), project_hash()
    if expected and found != expected:
        reason = f"other files in conf/ and src/ ({found})" if found else "no project"
        raise ConfigError(
            f"the pipeline was compiled in a project ({expected}), but its image has {reason}",
            where=f"the image; {VARIABLE}={os.environ.get(VARIABLE, '')}",
            remedy="build the image again with the Dockerfile of the project, push it, and submit"
            " the pipeline with its digest",
        )


def _record_error(task: str, error: BaseException) -> None:
    """Write an error as the termination message of the pod, for KFP's UI and notify_failure."""
    what = str(error) if isinstance(error, ArcloopError) else f"{type(error).__name__}: {error}"
    if _TERMINATION_MESSAGE.exists():
        text = f"{task}: {what}".encode()[:_MAX_MESSAGE_BYTES].decode(errors="ignore")
        _TERMINATION_MESSAGE.write_text(text, encoding="utf-8")


def run_step(name: str, arguments: Mapping[str, Any]) -> None:
    """Run a step, and record the hash and the properties of its artifact in KFP's metadata.

    Args:
        name: A key of `STEPS`.
        arguments: The arguments of the component: `*_overrides`, input artifacts by role, the
            artifact to write (`*_out`), and optionally `report`, which KFP's UI shows, and
            `trainjob`, the JSON of `arcloop.kfp.pod.trainjob.make_job`.
    """
    output = next(value for key, value in arguments.items() if key.endswith("_out"))
    overrides, inputs = _overrides(arguments), _inputs(arguments)
    folder = output_folder(output)
    with in_use([folder, *inputs.values()]):
        if arguments.get("trainjob"):
            from arcloop.kfp.pod.trainjob import train

            sha256 = call(name, train, overrides, inputs["store"], folder, arguments["trainjob"])
        else:
            sha256 = call(name, _run_step, name, overrides, inputs, folder)
    publish(output, folder, sha256)
    output.metadata.update(properties(folder, inputs))
    if "report" in arguments:
        shutil.copyfile(folder / "report.html", arguments["report"].path)


def _run_step(name: str, overrides: list[str], inputs: Mapping[str, Path], output: Path) -> str:
    from arcloop.pipeline.attempts import end_retries
    from arcloop.pipeline.steps import run_step

    with end_retries(output):
        return run_step(name, overrides, inputs, output).sha256


def _overrides(arguments: Mapping[str, Any]) -> list[str]:
    lists = [value for name, value in arguments.items() if name.endswith("_overrides")]
    return [override for overrides in lists for override in overrides]


def _inputs(arguments: Mapping[str, Any]) -> dict[str, Path]:
    return {role: input_folder(arguments[role], role) for role in _ROLES if role in arguments}


def deploy(arguments: Mapping[str, Any]) -> None:
    """Deploy a run whose gallery, index and evaluation are artifacts of other tasks.

    Args:
        arguments: The arguments of the component: `*_overrides`, and input artifacts by role.
    """
    call("deploy", _deploy, _overrides(arguments), _inputs(arguments))


def _deploy(overrides: list[str], inputs: Mapping[str, Path]) -> None:
    """Run `arcloop deploy` on a temporary folder that links all inputs into one run."""
    from arcloop.serving.deploy import main

    # KFP terminates a run by SIGTERM; a rollout that is not complete is then rolled back.
    signal.signal(signal.SIGTERM, raise_terminated)
    os.environ["ARCLOOP_TRACEBACK"] = "1"  # makes `main` raise its errors
    with tempfile.TemporaryDirectory() as run:
        links = {entry.name: entry for entry in inputs["run"].iterdir()} | dict(inputs)
        for name, target in links.items():
            if name != "run":
                Path(run, name).symlink_to(target)
        with contextlib.chdir(os.environ.get(STORES, ".")):
            code = main([f"run_dir={run}", *overrides])
    if code:
        raise SystemExit(code)


def compute_fingerprint(data_overrides: Sequence[str]) -> str:
    """Return the hash of the content and the settings of the data source, as in the store's name.

    Args:
        data_overrides: Hydra overrides that describe the source.

    Raises:
        DataError: The source does not exist.
    """
    from arcloop.config.composition import build, compose_config
    from arcloop.data import store_key

    return store_key(build(compose_config(data_overrides), "data"))


def show_evaluation(
    evaluation: Artifact,
    metrics: Metrics,
    confusion: ClassificationMetrics,
    roc: ClassificationMetrics,
    summary: Markdown,
) -> bool:
    """Show metrics, confusion matrix, ROC and a summary in KFP's UI.

    A matrix of more than 100 classes is left out, because KFP stores it in its database.

    Returns:
        Whether the gate passed.
    """
    folder = output_folder(evaluation)
    values, gate = read_result(folder)
    for name, value in values.items():
        metrics.log_metric(name, value)
    header, *rows = _read_csv(folder / "confusion_matrix.csv")
    if len(rows) <= _MAX_CONFUSION:
        counts = [[int(cell) for cell in row[1:]] for row in rows]
        confusion.log_confusion_matrix(header[1:], counts)
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


def read_result(evaluation: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the metrics and the gate decision of an evaluation."""
    return read_metrics(evaluation), json.loads((evaluation / "gate.json").read_bytes())


def _read_csv(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))
