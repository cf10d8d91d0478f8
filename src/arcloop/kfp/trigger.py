"""`python kubeflow/trigger.py data.root=... [every=600] [overrides of submit.py]`.

Starts a run when the source's content is not that of the last run that this started; once, or,
with `every=SECONDS`, again and again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import sleep

from arcloop.artifacts.atomic import sha256_json, write_json
from arcloop.display.terminal import say
from arcloop.errors import ArcloopError, ConfigError, mendable, report_errors
from arcloop.kfp.submission import Submission, fingerprint, read_submission, submit

_STATE = Path("runs/pipelines/triggers")


def main(argv: Sequence[str]) -> int:
    """Look, and submit if there is something new; returns the exit code, as `arcloop` does."""
    if any(word in ("-h", "--help") for word in argv):
        print(__doc__)
        return 0
    return report_errors(lambda: _watch(argv))


def _watch(argv: Sequence[str]) -> int:
    every = [word for word in argv if word.startswith("every=")]
    submission = read_submission([word for word in argv if word not in every])
    if submission.compile_only or submission.cron:
        raise ConfigError("a trigger starts runs", remedy="leave mode= and schedule= out")
    if not every:
        look(submission)
        return 0
    seconds = _seconds(every[-1])
    while True:
        try:
            look(submission)
        except Exception as error:  # a watch outlives one bad run and a server's bad hour
            if (told := mendable(error)) is None:
                raise
            say(f"error: {told}")
        sleep(seconds)


def _seconds(word: str) -> float:
    try:
        seconds = float(word.partition("=")[2])
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{word} must be a number of seconds above 0", remedy="e.g. every=600")
    return seconds


def look(submission: Submission) -> bool:
    """Submit if the source changed since the last run that was started; returns whether it did.

    A run that was refused is tried again at the next look; one that was started and failed is not,
    for the same data would fail again.

    Raises:
        ArcloopError: The source cannot be read, or the submission or the run failed.
    """
    with _locked(_state_file(submission)) as state:
        seen = fingerprint(submission.request)
        if _last(state) == seen:
            say("nothing new")
            return False
        say(f"new data: {seen}")
        submit(submission, started=lambda: write_json(state, {"fingerprint": seen}))
    return True


def _state_file(submission: Submission) -> Path:
    """One for each source and destination; what is done with the data does not matter."""
    what = [dict(submission.request.plain["data"]), submission.cluster.host]
    return _STATE / f"{submission.name}-{sha256_json(what)[:12]}.json"


def _last(state: Path) -> str | None:
    try:
        return str(json.loads(state.read_bytes())["fingerprint"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ArcloopError(
            "the trigger's memory is damaged", where=state, remedy="delete it; the next look runs"
        ) from None


@contextlib.contextmanager
def _locked(state: Path) -> Iterator[Path]:
    """Let one trigger at a time look at a source, so that new data start one run."""
    state.parent.mkdir(parents=True, exist_ok=True)
    with open(state.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArcloopError(
                "another trigger is at work on this source",
                where=state,
                remedy="wait for it, or stop it",
            ) from None
        yield state
