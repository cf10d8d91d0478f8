"""What `arcloop pipeline` does on a KFP server."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from arcloop.kfp.pipeline import compile_cleaning
from arcloop.kfp.server.client import KfpClient
from arcloop.kfp.server.origin import describe_origin
from arcloop.kfp.server.runs import show_status, terminate, wait
from arcloop.kfp.server.schedules import (
    list_schedules,
    refresh_schedules,
    remove_schedule,
    start_schedule,
)
from arcloop.kfp.submission import Submission


def manage(client: KfpClient, submission: Submission) -> int:
    """Do the work of a mode that does not compile the steps.

    Args:
        client: The server.
        submission: The checked command line.

    Returns:
        The exit code.

    Raises:
        ArcloopError: The server refuses or does not answer.
    """
    options = submission.options
    match options.mode:
        case "status" if options.wait:
            return wait(client, str(options.run), _follow_command(submission, str(options.run)))
        case "status":
            return show_status(client, str(options.run))
        case "terminate":
            return terminate(client, str(options.run))
        case "schedules":
            list_schedules(client)
        case "unschedule":
            remove_schedule(client, submission.config["name"])
        case "clean":
            settings, days = submission.cluster, options.keep_days
            compile_cleaning(settings, submission.path, keep_days=days, dry_run=options.dry_run)
            return start(client, submission, {}, lambda: None)
    return 0


def start(
    client: KfpClient,
    submission: Submission,
    parameters: Mapping[str, Any],
    started: Callable[[], None],
) -> int:
    """Upload the compiled pipeline, and start a run or change recurring runs.

    Args:
        client: The server.
        submission: The checked command line.
        parameters: Parameter of the pipeline -> value.
        started: Called when the run has been started.

    Returns:
        The exit code.

    Raises:
        ArcloopError: The server refuses or does not answer. Nothing was started, except if only the
            deletion of an earlier recurring run failed.
    """
    description = describe_origin(submission.cluster.image, submission.command)
    version = client.upload(submission.path, description)
    if submission.options.mode == "refresh":
        refresh_schedules(client, version, description)
        return 0
    fields = client.run_fields(version, parameters, submission.config["name"], description)
    if submission.cron:
        start_schedule(client, fields, submission.cron)
        started()
        return 0
    run_id = client.start_run(fields)
    started()
    if not submission.options.wait:
        return 0
    return wait(client, run_id, _follow_command(submission, run_id))


def _follow_command(submission: Submission, run_id: str) -> str:
    """Return the command that follows a run, with the settings of the cluster of this command."""
    cluster = [word for word in submission.command if word.startswith("cluster")]
    return shlex.join(
        ["arcloop", "pipeline", "mode=status", f"run={run_id}", "wait=true", *cluster]
    )
