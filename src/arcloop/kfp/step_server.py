"""`python step_server.py SOCKET`: imports what the steps need once, then forks a process per step.

kfp.local starts a Python process for every step, which would spend seconds on importing torch and
Lightning. A step that `step_client` sends here is a process of its own all the same: with the
caller's arguments, folder, environment and terminal, and its exit code goes back to the caller.
The server ends when its standard input does, so it never outlives `submit.py`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence

_IMPORTED = (
    "arcloop.pipeline.steps",
    "arcloop.data",
    "arcloop.training",
    "arcloop.evaluation",
    "kfp.dsl.executor",
)
_LONGEST = 1 << 24


def main() -> int:
    """Listen, import, and serve until standard input ends."""
    os.environ["_KFP_RUNTIME"] = "true"  # kfp then imports only what a step needs
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `arcloop` has it
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()  # a step that comes during the imports waits for them
        _warm_up()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return 0
            caller, _ = listener.accept()
            with caller:
                if os.fork() == 0:
                    listener.close()
                    os._exit(_attend(caller))


def _warm_up() -> None:
    """Do once what every step would do first: imports, the config's grammar, the code's version."""
    for name in _IMPORTED:
        importlib.import_module(name)
    from arcloop.artifacts.provenance import git_revision, package_versions
    from arcloop.config.composition import compose_config
    from arcloop.errors import ArcloopError

    with contextlib.suppress(ArcloopError):  # a step will tell of it
        compose_config([])
    git_revision()
    package_versions()


def _attend(caller: socket.socket) -> int:
    """Run one step in a process of its own and send its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, files, _, _ = socket.recv_fds(caller, _LONGEST, 3)
    while not message.endswith(b"\n"):
        message += caller.recv(_LONGEST)
    job = json.loads(message)
    step = os.fork()
    if step == 0:
        caller.close()
        os._exit(_run(job["arguments"], job["folder"], job["environment"], files))
    _, status = os.waitpid(step, 0)
    caller.sendall(bytes([os.waitstatus_to_exitcode(status) & 255]))
    return 0


def _run(
    arguments: Sequence[str], folder: str, environment: dict[str, str], files: Sequence[int]
) -> int:
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    assert arguments[0] == "-m"
    sys.argv = list(arguments[1:])
    code: object
    try:
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 - what an interpreter does at its top
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # the module closed it
            stream.flush()
    if code is None or isinstance(code, int):
        return code or 0
    print(code, file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
