"""`python ready.py PORT NAME WORKERS`: exit code 0 where every worker of TorchServe is READY.

The probe of a pod, run every few seconds: TorchServe's /ping says Healthy while no worker lives,
and its management, which knows better, listens on the pod's loopback only. Nothing but Python's own
library.
"""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Sequence

_TIMEOUT_S = 4


def main(argv: Sequence[str]) -> int:
    """Ask, and say why not where the answer is no."""
    port, name, workers = int(argv[0]), argv[1], int(argv[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", f"/models/{name}")
        described = json.loads(connection.getresponse().read())
        statuses = [worker["status"] for worker in described[0]["workers"]]
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as cause:
        print(f"TorchServe's management does not answer: {cause!r}")
        return 1
    finally:
        connection.close()
    if len(statuses) < workers or set(statuses) != {"READY"}:
        print(f"{workers} workers are wanted, and these are there: {statuses}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
