"""`python step_client.py SOCKET -m MODULE ...`: run a module in a fork of the step server."""

import json
import os
import socket
import sys


def main() -> int:
    """Send arguments, folder, environment and terminal; return the step's exit code."""
    folder = os.getcwd()  # noqa: PTH109 - importing pathlib would take longer than all the rest
    job = {"arguments": sys.argv[2:], "folder": folder, "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(sys.argv[1])
        message = json.dumps(job).encode() + b"\n"
        sent = socket.send_fds(server, [message], [0, 1, 2])
        server.sendall(message[sent:])
        answer = server.recv(1)
    return answer[0] if answer else 1


if __name__ == "__main__":
    sys.exit(main())
