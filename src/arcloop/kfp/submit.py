"""`python kubeflow/submit.py [overrides] [cluster=...] [mode=...] [schedule=...] [notify=...]`.

Compiles the pipeline for a cluster and runs it there: through kfp.local for cluster=local, else as
a new version and a run, or a recurring run, of a KFP server.
"""

from __future__ import annotations

from collections.abc import Sequence

from arcloop.errors import report_errors
from arcloop.kfp.submission import Ended, read_submission, submit

_HELP = """\
python kubeflow/submit.py [GROUP=CHOICE] [KEY=VALUE] [mode=...] [schedule=...]

  cluster=local           run here, each step a process (default); onprem, gke: on a KFP server
  mode=run | compile      compile only writes the IR YAML
  schedule="0 0 * * 2"    a recurring run, here every Tuesday at midnight UTC
  notify=none | slack     whom to tell how it ended

All other overrides are those of `arcloop run`; see `arcloop --help`.
Exit codes: 0 done, 1 data, machine or server at fault, 2 config at fault, 3 the gate did not pass.
ARCLOOP_TRACEBACK=1 shows where an error came from."""
GATE_NOT_PASSED = 3


def main(argv: Sequence[str]) -> int:
    """Submit; returns the exit code, as `arcloop` does."""
    if any(word in ("-h", "--help") for word in argv):
        print(_HELP)
        return 0
    return report_errors(lambda: _code(submit(read_submission(argv))))


def _code(ended: Ended) -> int:
    return GATE_NOT_PASSED if ended.gate_passed is False else 0
