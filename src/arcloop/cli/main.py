"""`arcloop VERB [hydra overrides] [-m]`: wires and nothing else."""

from __future__ import annotations

import difflib
import importlib
import signal
import sys
from collections.abc import Sequence

from arcloop.config.targets import require_extra
from arcloop.errors import ConfigError, report_errors


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0 done; 1 data or machine at fault; 2 config at fault; 3 done, but the gate did not pass.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return report_errors(lambda: _dispatch(arguments))


def _dispatch(arguments: list[str]) -> int:
    from arcloop.cli import usage

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
        from arcloop.cli.query import query

        return query(rest)
    if verb == "lineage":
        from arcloop.pipeline.lineage import lineage

        return lineage(rest)
    if verb == "reproduce":
        from arcloop.pipeline.reproduce import reproduce

        return reproduce(rest)
    if verb == "leaderboard":
        from arcloop.pipeline.leaderboard.page import leaderboard

        return leaderboard(rest)
    if ("-h" in rest or "--help" in rest) and verb != "pipeline":
        print(usage.of_verb(verb))
        return 0
    if verb in usage.DEPLOYING:
        return _deploying(verb, rest)
    from arcloop.cli.launch import launch

    return launch(verb, rest)


def _deploying(verb: str, arguments: list[str]) -> int:
    """Run a verb of the extras `serving` and `kubeflow`."""
    from arcloop.cli import usage

    extra, module = usage.DEPLOYING[verb]
    require_extra(extra, *usage.PACKAGES[extra], where=f"arcloop {verb}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # work in progress is undone
    code: int = importlib.import_module(module).main(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
