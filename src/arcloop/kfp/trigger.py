"""Submit the pipeline when the data have changed: `arcloop trigger`."""

from __future__ import annotations

from collections.abc import Sequence
from time import sleep

import yaml

from arcloop.artifacts.atomic import sha256_json, try_lock, write_bytes
from arcloop.config.value_types import PositiveFloat, describe_mismatch
from arcloop.display.terminal import print_line
from arcloop.errors import ArcloopError, ConfigError, as_user_error
from arcloop.kfp.options import MULTIRUN
from arcloop.kfp.pod.steps import compute_fingerprint
from arcloop.kfp.submission import COMPILED, Submission, read_submission, run_verb, submit


def trigger(argv: Sequence[str]) -> int:
    """Submit the pipeline if the data have changed: once, or repeatedly.

    Args:
        argv: Overrides, and `every=`, the seconds between two checks.

    Returns:
        The exit code, see `arcloop trigger --help`.
    """
    return run_verb(argv, lambda: _trigger(argv))


def _trigger(argv: Sequence[str]) -> int:
    if not MULTIRUN.isdisjoint(argv):
        raise ConfigError("`arcloop trigger` does not support -m", remedy="use `arcloop pipeline`")
    every = [word for word in argv if word.startswith("every=")]
    submission = read_submission([word for word in argv if word not in every])
    if submission.options.mode != "run" or submission.cron:
        raise ConfigError(
            "`arcloop trigger` does not support mode= and schedule=", remedy="remove them"
        )
    if not every:
        return submit_if_changed(submission)
    seconds = yaml.safe_load(every[-1].partition("=")[2])
    if fault := describe_mismatch(seconds, PositiveFloat):
        raise ConfigError(f"{every[-1]} {fault}", remedy="give seconds, e.g. every=600")
    while True:
        try:
            submit_if_changed(submission)
        except Exception as error:  # continue after a failed run or while a server is down
            if (reported := as_user_error(error)) is None:
                raise
            print_line(f"error: {reported}")
        sleep(seconds)


def submit_if_changed(submission: Submission) -> int:
    """Submit if the source has changed since the last run that was started.

    If the server refuses a run, the next check submits it again. A run that failed is not submitted
    again, because the same data would fail again.

    Returns:
        The exit code of `submit`, or 0 if nothing has changed.

    Raises:
        ArcloopError: The source cannot be read, or the submission or the run failed.
    """
    # One file, with the last fingerprint, for each run name, source and server.
    key = sha256_json([submission.config["data"], submission.cluster.host])[:12]
    state = COMPILED / "triggers" / f"{submission.config['name']}-{key}.txt"
    lock = try_lock(state)  # only one trigger may start a run for the same data
    if lock is None:
        raise ArcloopError(
            "another trigger is running for this source",
            where=state,
            remedy="wait for it, or stop it",
        )
    with lock:
        fingerprint = compute_fingerprint(submission.parameters["data"])
        if state.exists() and state.read_text(encoding="utf-8") == fingerprint:
            print_line("no new data")
            return 0
        print_line(f"new data: {fingerprint}")
        return submit(submission, started=lambda: write_bytes(state, fingerprint.encode()))
