"""Submit the pipeline when the data change: `arcloop trigger`, `python kubeflow/trigger.py`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from time import sleep

from arcloop.artifacts.atomic import sha256_json, try_lock, write_json
from arcloop.display.terminal import print_line
from arcloop.errors import ArcloopError, ConfigError, as_user_error, report_errors
from arcloop.kfp.pod import compute_fingerprint
from arcloop.kfp.submission import Submission, read_submission, submit

_HELP = """\
arcloop trigger data.root=... [every=SECONDS] [overrides of `arcloop pipeline`]

Starts a run if the content of the data source differs from that of the last run that this command
started. With every=SECONDS, it repeats this check until it is interrupted."""
_STATE = Path("runs/pipelines/triggers")


def main(argv: Sequence[str]) -> int:
    """Check the source once, or repeatedly, and submit when it has changed.

    Args:
        argv: Overrides of `arcloop pipeline` and `every=`.

    Returns:
        The exit code, see `arcloop --help`.
    """
    if any(word in ("-h", "--help") for word in argv):
        print(_HELP)
        return 0
    return report_errors(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    every = [word for word in argv if word.startswith("every=")]
    submission = read_submission([word for word in argv if word not in every])
    if submission.compile_only or submission.cron:
        raise ConfigError("a trigger starts runs", remedy="remove mode= and schedule=")
    if not every:
        submit_if_changed(submission)
        return 0
    seconds = _parse_seconds(every[-1])
    while True:
        try:
            submit_if_changed(submission)
        except Exception as error:  # continue after a failed run or while a server is down
            if (reported := as_user_error(error)) is None:
                raise
            print_line(f"error: {reported}")
        sleep(seconds)


def _parse_seconds(word: str) -> float:
    try:
        seconds = float(word.partition("=")[2])
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{word} must be a number of seconds above 0", remedy="e.g. every=600")
    return seconds


def submit_if_changed(submission: Submission) -> bool:
    """Submit if the source has changed since the last run that was started.

    If the server refuses a run, the next check submits it again. A run that failed is not submitted
    again, because the same data would fail again.

    Returns:
        Whether a run was started.

    Raises:
        ArcloopError: The source cannot be read, or the submission or the run failed.
    """
    state = _state_file(submission)
    lock = try_lock(state)  # only one trigger may start a run for the same data
    if lock is None:
        raise ArcloopError(
            "another trigger is running for this source",
            where=state,
            remedy="wait for it, or stop it",
        )
    with lock:
        fingerprint = compute_fingerprint(submission.request.config)
        if _last_fingerprint(state) == fingerprint:
            print_line("no new data")
            return False
        print_line(f"new data: {fingerprint}")
        submit(submission, started=lambda: write_json(state, {"fingerprint": fingerprint}))
    return True


def _state_file(submission: Submission) -> Path:
    """Return the state file for the run name, the source and the server of a submission."""
    key = [dict(submission.request.plain["data"]), submission.cluster.host]
    return _STATE / f"{submission.name}-{sha256_json(key)[:12]}.json"


def _last_fingerprint(state: Path) -> str | None:
    """Return the fingerprint of the last started run; None if there is none."""
    try:
        return str(json.loads(state.read_bytes())["fingerprint"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ArcloopError(
            "the state file of the trigger is damaged",
            where=state,
            remedy="delete it; the next check then starts a run",
        ) from None
