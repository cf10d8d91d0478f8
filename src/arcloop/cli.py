"""`arcloop VERB [hydra overrides] [-m]`: wires and nothing else."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence

from arcloop.errors import ConfigError, mendable

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0 done; 1 data or machine at fault; 2 config at fault; 3 done, but the gate did not pass.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return report(lambda: _dispatch(arguments))


def report(work: Callable[[], int]) -> int:
    """Do the work; tell what a user can mend as one message, and return the exit code."""
    try:
        return work()
    except KeyboardInterrupt:
        print(
            "interrupted; nothing half-written counts, and the same command goes on",
            file=sys.stderr,
        )
        return INTERRUPTED
    except Exception as cause:
        error = mendable(cause)
        if error is None or os.environ.get("ARCLOOP_TRACEBACK") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _dispatch(arguments: list[str]) -> int:
    from arcloop import usage

    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage.overview())
        return 0
    verb, *rest = arguments
    if verb not in usage.VERBS:
        near = difflib.get_close_matches(verb, usage.VERBS, n=1)
        raise ConfigError(
            f"there is no verb {verb!r}",
            remedy=f"did you mean {near[0]}?" if near else f"verbs: {', '.join(usage.VERBS)}",
        )
    if verb == "query":
        from arcloop.query import query

        return query(rest)
    if verb == "lineage":
        from arcloop.lineage import lineage

        return lineage(rest)
    if verb == "reproduce":
        from arcloop.reproduce import reproduce

        return reproduce(rest)
    if verb == "leaderboard":
        from arcloop.leaderboard.command import leaderboard

        return leaderboard(rest)
    if "-h" in rest or "--help" in rest:
        print(usage.of_verb(verb))
        return 0
    from arcloop.launch import launch

    return launch(verb, rest)


if __name__ == "__main__":
    sys.exit(main())
