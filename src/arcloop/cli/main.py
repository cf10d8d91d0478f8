"""Entry point of the command line: `arcloop VERB [hydra overrides] [-m]`."""

from __future__ import annotations

import difflib
import importlib
import signal
import sys
from collections.abc import Sequence

from arcloop.config.targets import require_extra
from arcloop.errors import ConfigError, report_errors


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments after the program name; `sys.argv` by default.

    Returns:
        Exit code: 0 success; 1 error of the data or machine; 2 error of the config; 3 the gate did
        not pass; 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return report_errors(lambda: _dispatch(arguments))


def _dispatch(arguments: list[str]) -> int:
    """Print help, or run the verb and return the exit code."""
    from arcloop.cli.verbs import EXTRA_PACKAGES, VERBS, describe, overview

    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    name, *rest = arguments
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        raise ConfigError(
            f"there is no verb {name!r}",
            remedy=f"did you mean {near[0]}?" if near else f"verbs: {', '.join(VERBS)}",
        )
    verb = VERBS[name]
    wants_help = bool({"-h", "--help"} & set(rest))
    if wants_help and not verb.own_help:
        print(describe(name))
        return 0
    if not verb.function:
        from arcloop.cli.launch import launch

        return launch(name, rest)
    if verb.extra and not wants_help:
        require_extra(verb.extra, *EXTRA_PACKAGES[verb.extra], where=f"arcloop {name}")
        # SIGTERM, which Kubernetes and systemd send, ends the work in the same way as Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    module, _, function = verb.function.rpartition(".")
    code: int = getattr(importlib.import_module(module), function)(rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
