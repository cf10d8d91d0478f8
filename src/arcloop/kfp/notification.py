"""Messages that the tasks notify and notify_failure post to a webhook."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path

from arcloop.kfp.pod import read_result

_NOTIFIED_METRICS = ("top1", "map_at_r", "eer")


def post_result(webhook_env: str, timeout_s: float, outcome: str, evaluation: str) -> None:
    """Post the outcome of a run with its metrics and the gate decision; see `post`."""
    metrics, gate = read_result(Path(evaluation))
    shown = [f"{name} {metrics[name]:.4f}" for name in _NOTIFIED_METRICS if name in metrics]
    post(webhook_env, timeout_s, "\n".join([outcome, ", ".join(shown), *gate["reasons"]]))


def post(webhook_env: str, timeout_s: float, text: str) -> None:
    """Post a message; if this fails, print the type of the error and continue.

    Args:
        webhook_env: Environment variable that contains the URL.
        timeout_s: Time-out of the request, in seconds.
        text: The message.
    """
    try:
        request = urllib.request.Request(  # noqa: S310 - an administrator configures the URL
            os.environ[webhook_env],
            json.dumps({"text": text}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=timeout_s).close()  # noqa: S310
    except Exception as cause:  # noqa: BLE001 - some messages contain the URL, which is a secret
        print(f"the notification was not delivered: {type(cause).__name__}")
