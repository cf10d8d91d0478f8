"""The runs of a sweep on a KFP server: one for each combination, in one experiment."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from arcloop.display.terminal import print_line
from arcloop.errors import GATE_NOT_PASSED, INTERRUPTED
from arcloop.kfp.server.client import KfpClient
from arcloop.kfp.server.origin import describe_origin
from arcloop.kfp.server.runs import wait
from arcloop.kfp.submission import Submission, resolve_parameters
from arcloop.kfp.sweeps.combinations import Combination, print_states

_ENDED_EARLY = ("FAILED", "CANCELED", "CANCELING")
"""States of a run whose combination is started again by the same command."""


def start_runs(sweep: str, combinations: Sequence[Combination], compiled: Path) -> dict[str, str]:
    """Start a run for each combination without a finished or active one; print a table of all.

    Args:
        sweep: ID of the sweep, with which the name of each run begins.
        combinations: The combinations.
        compiled: The IR YAML of a single combination.

    Returns:
        Name of the combination -> ID of its run.

    Raises:
        ArcloopError: The server refuses or does not answer. The same command starts the rest.
    """
    first = combinations[0].submission
    client = KfpClient(first.cluster)
    version = client.upload(compiled, describe_origin(first.cluster.image, first.command))
    existing = _existing_runs(client, sweep)
    runs, states = {}, {}
    for one in combinations:
        name = f"{sweep}-{one.name}"
        if name in existing:
            runs[one.name], state = existing[name]
        else:
            parameters = resolve_parameters(one.submission)
            description = f"sweep {sweep}: {shlex.join(one.point['overrides'])}"
            fields = client.run_fields(version, parameters, name, description)
            runs[one.name], state = client.start_run(fields), "started"
        states[one.name] = f"{state.lower()}: {client.address(runs[one.name])}"
    print_states(states)
    return runs


def _existing_runs(client: KfpClient, sweep: str) -> dict[str, tuple[str, str]]:
    """Return the runs of a sweep that have finished or are active: name -> ID and state."""
    experiment = client.experiment()
    if experiment is None:
        return {}
    predicate = {"operation": "IS_SUBSTRING", "key": "display_name", "stringValue": sweep}
    pages = client.pages(
        client.runs.run_service_list_runs,
        experiment_id=experiment.experiment_id,
        filter=json.dumps({"predicates": [predicate]}),
    )
    runs = [run for page in pages for run in page.runs or ()]
    return {
        run.display_name: (run.run_id, run.state or "PENDING")
        for run in runs
        if run.state not in _ENDED_EARLY
    }


def follow_runs(first: Submission, runs: Mapping[str, str]) -> dict[str, str] | None:
    """Follow the runs of a sweep to their ends.

    Args:
        first: Any of the submissions.
        runs: Name of the combination -> ID of its run.

    Returns:
        Name of each combination whose run failed -> the error; None if this command was
        interrupted.

    Raises:
        ArcloopError: The server refuses.
    """
    client, failures = KfpClient(first.cluster), {}
    for name, run_id in runs.items():
        print_line(f"{name}:")
        code = wait(client, run_id, shlex.join(first.command))
        if code == INTERRUPTED:
            return None
        if code not in (0, GATE_NOT_PASSED):
            failures[name] = f"the run of {name} failed: {client.address(run_id)}"
    print_states({name: "failed" if name in failures else "finished" for name in runs})
    return failures
