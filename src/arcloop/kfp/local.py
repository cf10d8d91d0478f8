"""Run a compiled pipeline on this machine through kfp.local.

kfp.local starts a Python process for every task. Importing torch and Lightning in each of them
would take longer than the small tasks themselves. A task therefore sends its work to a
`TaskServer`, which forks a process from a fork server that has already imported them.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Client, Listener
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

from arcloop.display.terminal import print_line
from arcloop.errors import ArcloopError
from arcloop.kfp.pod import TASK_SERVER, Call, Reply, serve_call
from arcloop.pipeline.steps import STEPS

_PRELOADED = [
    "arcloop.data",
    "arcloop.training",
    "arcloop.evaluation.evaluate",
    "arcloop.retrieval.index",
    "arcloop.serving.deploy",
    "arcloop.kfp.pod",
    "jinja2",  # evaluate imports this and the following lazily
    "sklearn.manifold",
    "sklearn.metrics",
]
_REPORTED_METRICS = ("top1", "recall_at_5", "map_at_r", "eer")


class StepError(ArcloopError):
    """Raised if a step of a pipeline failed; contains the error message of the step."""


@dataclass(frozen=True)
class TaskRun:
    """The outcome of a task.

    Attributes:
        name: Name of the task.
        state: "ran", "cached" or "failed".
        seconds: Duration of a task that was not cached.
        error: Message of the error of a failed task.
    """

    name: str
    state: str
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class LocalResult:
    """The outcome of a pipeline.

    Attributes:
        tasks: The outcome of each task, in order.
        gate_passed: Whether the gate passed.
        evaluation: Folder of the evaluation.
        metrics: Metrics of the evaluation.
    """

    tasks: Sequence[TaskRun]
    gate_passed: bool
    evaluation: Path
    metrics: Mapping[str, float]

    def report(self) -> Iterator[str]:
        """Yield lines for the end of the command's output."""
        shown = [name for name in _REPORTED_METRICS if name in self.metrics]
        yield from (f"{name}: {self.metrics[name]:.4f}" for name in shown)
        yield "the gate passed" if self.gate_passed else "the gate did not pass; not deployed"
        yield f"report: {self.evaluation / 'report.html'}"


def start_fork_server() -> None:
    """Start the process that imports torch and the other modules of the steps.

    It imports them in the background and exits when this process exits.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # OpenMP reads it when torch is imported
    forkserver.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


def run_pipeline(
    compiled: Path, arguments: Mapping[str, Any], folder: Path, *, cache: bool
) -> LocalResult:
    """Run a compiled pipeline.

    Args:
        compiled: The IR YAML.
        arguments: Its parameters.
        folder: Folder for the outputs, the log and the cache.
        cache: Whether to reuse cached results.

    Raises:
        StepError: A step failed.
    """
    from kfp import components, local

    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{datetime.now():%Y%m%d-%H%M%S-%f}.log"
    with warnings.catch_warnings():
        # Hides kfp's warning that resources and titles have no effect in a local run.
        warnings.simplefilter("ignore")
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(folder),
            workspace_root=tempfile.mkdtemp(prefix="arcloop-"),  # kfp removes it
            enable_caching=cache,
            cache_root=str(folder / "cache"),
        )
        with (
            TaskServer(log) as server,
            open(log, "a", encoding="utf-8", buffering=1) as output,
            contextlib.redirect_stdout(output),
        ):
            try:
                task = components.load_component_from_file(str(compiled))(**arguments)
            except RuntimeError as failure:
                raise _explain(failure, server.tasks, log) from None
        server.report_cached(*STEPS)
    made = task.outputs.get(
        "evaluation"
    )  # KFP does not support outputs of a pipeline with an exit handler
    evaluation = Path(made.path) if made else server.evaluation
    assert evaluation
    metrics = json.loads((evaluation / "metrics.json").read_bytes())
    gate = json.loads((evaluation / "gate.json").read_bytes())
    return LocalResult(server.tasks, gate["passed"], evaluation, metrics)


class TaskServer:
    """Executes the calls of the tasks of a pipeline, each in a forked process.

    Args:
        log: File that the output of the calls is appended to.

    Attributes:
        tasks: The outcome of each task so far.
        evaluation: Folder of the evaluation, if a task had it as an input.
    """

    def __init__(self, log: Path) -> None:
        self.tasks: list[TaskRun] = []
        self.evaluation: Path | None = None
        self._log = log
        self._context = get_context("forkserver")
        self._process: BaseProcess | None = None

    def __enter__(self) -> Self:
        self._listener = Listener()  # a socket in a folder that only this user can read
        os.environ[TASK_SERVER] = str(self._listener.address)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:  # the command was interrupted during a task
            self._process.terminate()
        with Client(os.environ.pop(TASK_SERVER)) as server:
            server.send(None)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        """Answer the requests of tasks, one at a time, until None is received."""
        while True:
            # A task that was killed closes its connection early.
            with contextlib.suppress(OSError, EOFError), self._listener.accept() as client:
                if (request := client.recv()) is None:
                    return
                client.send(self._run(request))

    def _run(self, request: Call) -> Reply:
        """Execute a call in a forked process and record the outcome of the task."""
        if request.task in (*STEPS, "deploy", "notify"):
            steps = list(STEPS)
            position = steps.index(request.task) if request.task in steps else len(steps)
            self.report_cached(*steps[:position])
        if request.task == "notify":
            self.evaluation = Path(request.arguments[-1])
        started = time.perf_counter()
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=serve_call, args=(request, self._log, sender))
        process.start()
        self._process = process
        sender.close()
        try:
            reply: Reply = receiver.recv()
        except EOFError:
            process.join()
            reply = Reply(error=f"its process ended with exit code {process.exitcode}")
        process.join()
        self._process = None
        state = "failed" if reply.error else "ran"
        self._add(TaskRun(request.task, state, time.perf_counter() - started, reply.error))
        return reply

    def report_cached(self, *steps: str) -> None:
        """Record these steps of a completed pipeline as cached if they did not run."""
        known = {task.name for task in self.tasks}
        for name in steps:
            if name not in known:
                self._add(TaskRun(name, "cached"))

    def _add(self, task: TaskRun) -> None:
        self.tasks.append(task)
        cached = task.state == "cached"
        outcome = "from the cache" if cached else f"{task.state}, {task.seconds:.1f} s"
        print_line(f"{task.name}: {outcome}")


def _explain(failure: RuntimeError, tasks: Sequence[TaskRun], log: Path) -> StepError:
    """Return an error with the message of the failed task instead of that of kfp.local."""
    failed = [task for task in tasks if task.state == "failed"]
    if not failed:
        return StepError(str(failure), where=log, remedy="see the log")
    message = f"step {failed[-1].name} failed: {failed[-1].error}"
    if "\n  remedy:" in message:
        return StepError(f"{message}\n  log: {log}")
    return StepError(message, where=log, remedy="see the complete output in the log")
