"""Run a compiled pipeline on this machine through kfp.local.

kfp.local starts a Python process for every task. Importing torch and Lightning in each of them
would take longer than the small tasks themselves. A task therefore sends its work to a
`TaskServer`, which forks a process from a fork server that has already imported them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

import arcloop
from arcloop.artifacts.atomic import sha256_json, write_bytes
from arcloop.artifacts.writer import package_versions
from arcloop.config.files import config_folders
from arcloop.config.plugins import record_plugins
from arcloop.config.project import hash_files, own_sources
from arcloop.display.terminal import print_line
from arcloop.errors import ArcloopError
from arcloop.kfp.parameters import COMBINATION
from arcloop.kfp.pod.notification import LOCAL_ERROR
from arcloop.kfp.pod.steps import TASK_SERVER, read_result
from arcloop.kfp.pod.storage import input_folder
from arcloop.pipeline.steps import STEPS

_PRELOADED = [
    "arcloop.data",
    "arcloop.training",
    "arcloop.evaluation.evaluate",
    "arcloop.retrieval.index",
    "arcloop.serving.deploy",
    "arcloop.kfp.local",
    "jinja2",  # `evaluate` imports this module and the next two when it needs them
    "sklearn.manifold",
    "sklearn.metrics",
    "torch.utils.tensorboard",  # `train` imports this module when it needs it
]
_REPORTED_METRICS = ("top1", "recall_at_5", "map_at_r", "eer")
_STEPS_BEFORE = {
    **{name: list(STEPS)[:number] for number, name in enumerate(STEPS)},
    "deploy": list(STEPS),
    "notify": list(STEPS),
}
"""Task -> steps whose results exist when it starts."""


def source_hash() -> str:
    """Return a hash of the files of arcloop, plug-ins and the project, and of package versions."""
    roots = [Path(arcloop.__file__).parent, *config_folders()[::-1]]
    files = hash_files([*roots, own] if (own := own_sources()) else roots)
    return sha256_json([files, package_versions(), record_plugins()])[:16]


def start_fork_server() -> None:
    """Start the process that imports torch and the other modules of the steps.

    It imports them in the background and exits when this process exits.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # OpenMP reads it when torch is imported
    forkserver.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


def run_pipeline(
    compiled: Path, arguments: Mapping[str, Any], folder: Path, *, cache: bool
) -> bool:
    """Run a compiled pipeline and print the states of its tasks and its result.

    Args:
        compiled: The IR YAML.
        arguments: Its parameters.
        folder: Folder for the outputs, the log and the cache.
        cache: Whether to reuse cached results.

    Returns:
        Whether the gate passed.

    Raises:
        ArcloopError: A step failed.
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
                # The message of the failed task has more details than that of kfp.local.
                message = server.error or str(failure)
                raise ArcloopError(f"{message}\n  log: {log}") from None
        server.report_cached(STEPS)
    if "leaderboard" in server.results:
        return _report_best(json.loads(server.results["leaderboard"]), folder)
    # KFP does not support outputs of a pipeline with an exit handler. Such a pipeline has the task
    # notify, which returns the folder of the evaluation.
    evaluation = (
        input_folder(task.output, "evaluation") if task.outputs else server.results["notify"]
    )
    metrics, gate = read_result(Path(evaluation))
    for name in _REPORTED_METRICS:
        if name in metrics:
            print_line(f"{name}: {metrics[name]:.4f}")
    print_line("the gate passed" if gate["passed"] else "the gate did not pass; not deployed")
    print_line(f"report: {evaluation}/report.html")
    return bool(gate["passed"])


def _report_best(best: Mapping[str, Any], folder: Path) -> bool:
    """Print the best combination of a sweep, and return whether the gate passed.

    The leaderboard is copied to `folder`, because kfp.local gives it a name that browsers do not
    open.
    """
    page = folder / "leaderboard.html"
    write_bytes(page, Path(best["page"]).read_bytes())
    print_line(f"best: {best[COMBINATION]}, {best['monitor']} {best['objective']:.4f}")
    print_line("the gate passed" if best["passed"] else "the gate did not pass; not deployed")
    print_line(f"leaderboard: {page}")
    return bool(best["passed"])


class TaskServer:
    """Executes the calls of the tasks of a pipeline, each in a forked process.

    Args:
        log: File that the output of the calls is appended to.

    Attributes:
        states: Task -> "ran", "from the cache" or "failed".
        error: Name and error message of the last task that failed.
        results: Task -> return value of its call.
    """

    def __init__(self, log: Path) -> None:
        self.states: dict[str, str] = {}
        self.error = ""
        self.results: dict[str, Any] = {}
        self._log = log
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
                client.send(self._run(*request))

    def _run(
        self, task: str, environment: Mapping[str, str], function: Any, arguments: Sequence[Any]
    ) -> tuple[Any, str]:
        """Execute a call in a forked process; return its result and its error message."""
        self.report_cached(_STEPS_BEFORE.get(task, ()))
        started = time.perf_counter()
        context = get_context("forkserver")
        receiver, sender = context.Pipe(duplex=False)
        environment = {**environment, LOCAL_ERROR: self.error}
        call = (function, arguments, Path.cwd(), environment, self._log, sender)
        self._process = context.Process(target=_execute, args=call)
        self._process.start()
        sender.close()
        try:
            result, error = receiver.recv()
        except EOFError:
            self._process.join()
            result, error = None, f"its process ended with exit code {self._process.exitcode}"
        self._process.join()
        self._process = None
        self.results[task] = result
        self.states[task] = "failed" if error else "ran"
        self.error = f"step {task} failed: {error}" if error else self.error
        print_line(f"{task}: {self.states[task]}, {time.perf_counter() - started:.1f} s")
        return result, error

    def report_cached(self, steps: Iterable[str]) -> None:
        """Report the steps among these that did not run, because their results were cached."""
        for name in steps:
            if name not in self.states:
                self.states[name] = "from the cache"
                print_line(f"{name}: from the cache")


def _execute(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    replies: Connection,
) -> None:
    """Execute a call in this process; send its result and its error message."""
    with open(log, "ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    result, error = None, ""
    try:
        result = function(*arguments)
    except BaseException as cause:  # noqa: BLE001 - every error is an error of the task
        traceback.print_exc()
        is_ours = isinstance(cause, ArcloopError)
        error = str(cause) if is_ours else f"{type(cause).__name__}: {cause}".removesuffix(": ")
    sys.stdout.flush()
    replies.send((result, error))
