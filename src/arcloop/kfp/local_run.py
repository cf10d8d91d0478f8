"""A compiled pipeline run through kfp.local: every step a process of this machine."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import components, local

from arcloop.errors import ArcloopError
from arcloop.kfp.local_log import LocalLog, TaskRun

_SHOWN = ("top1", "recall_at_5", "map_at_r", "eer")


class StepError(ArcloopError):
    """A step of a pipeline ended with an error; the message is that of the step."""


@dataclass(frozen=True)
class Done:
    """What a pipeline that ran here came to.

    Attributes:
        tasks: What became of each, in order.
        gate_passed: The gate's verdict.
        evaluation: Folder of the evaluation.
        metrics: What was measured.
    """

    tasks: Sequence[TaskRun]
    gate_passed: bool
    evaluation: Path
    metrics: Mapping[str, float]

    def report(self) -> Iterator[str]:
        """Lines to end with."""
        yield from (f"{name}: {self.metrics[name]:.4f}" for name in _SHOWN if name in self.metrics)
        yield "the gate passed" if self.gate_passed else "the gate did not pass; not deployed"
        yield f"report: {self.evaluation / 'report.html'}"


def run_here(
    compiled: Path, arguments: Mapping[str, Any], folder: Path, python: Path, *, cache: bool
) -> Done:
    """Run a compiled pipeline and return what it came to.

    Args:
        compiled: The IR YAML.
        arguments: Its parameters.
        folder: Where outputs, log and cache go.
        python: What the steps are started with, see `warm_python`.
        cache: Take results that are there.

    Raises:
        StepError: A step did; with the message it failed with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # Resources and titles have no meaning here, as kfp says of each.
        warnings.simplefilter("ignore")
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(folder),
            workspace_root=tempfile.mkdtemp(prefix="arcloop-"),  # kfp removes it
            enable_caching=cache,
            cache_root=str(folder / "cache"),
        )
        with LocalLog(folder) as log, _started_with(python):
            try:
                task = components.load_component_from_file(str(compiled))(**arguments)
            except RuntimeError as failure:
                raise _explained(failure, log) from None
    made = task.outputs.get("evaluation")  # a pipeline with an exit handler has no outputs
    evaluation = Path(made.path if made else log.evaluation)
    metrics = json.loads((evaluation / "metrics.json").read_bytes())
    gate = json.loads((evaluation / "gate.json").read_bytes())
    return Done(log.tasks, gate["passed"], evaluation, metrics)


@contextlib.contextmanager
def _started_with(python: Path) -> Iterator[None]:
    """Have kfp.local start steps with this executable: it takes the one of this process."""
    before, sys.executable = sys.executable, str(python)
    try:
        yield
    finally:
        sys.executable = before


def _explained(failure: RuntimeError, log: LocalLog) -> ArcloopError:
    failed = log.failed
    if failed is None:
        return StepError(str(failure), where=log.path, remedy="see the log")
    told = f"step {failed.name} failed: {failed.cause}"
    if "\n  remedy:" in told:
        return StepError(f"{told}\n  log: {log.path}")
    return StepError(told, where=log.path, remedy="see its whole output there")
