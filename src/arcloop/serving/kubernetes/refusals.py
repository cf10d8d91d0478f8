"""What an API server refuses -> an error that says what to do."""

from __future__ import annotations

import json
from typing import Any

from kubernetes.client import ApiException

from arcloop.errors import ArcloopError, ConfigError, ResourceError


class UnreachableError(ResourceError):
    """The API server does not answer; it may do so again."""


_UNAVAILABLE = (429, 500, 502, 503, 504)
_GONE = 410


def refusal(cause: ApiException, doing: str, address: str, namespace: str) -> ArcloopError:
    """Return the error to tell.

    Args:
        cause: What the client raised.
        doing: What was asked for, e.g. "apply Deployment/mnist".
        address: Of the API server.
        namespace: Where.
    """
    status = _body(cause)
    message = f"cannot {doing}: {status.get('message') or cause.reason or cause.status}"
    where = f"namespace {namespace} at {address}"
    if cause.status in _UNAVAILABLE or cause.status == _GONE:
        return UnreachableError(message, where=where, remedy="try again later")
    if cause.status == 409 and (conflicts := _conflicts(status)):
        return ResourceError(
            "\n    ".join([f"cannot {doing}: others have set these fields otherwise", *conflicts]),
            where=where,
            remedy="agree on who sets them, or take them over with deploy.force_conflicts=true",
        )
    remedies = {
        0: "check the certificates that the kubeconfig names",
        401: "log in again: the credentials in the kubeconfig are wrong or expired",
        403: "let somebody grant the Role in docs/kubernetes.md",
        404: "create the namespace, or choose another with deploy.namespace; for deploy=kserve, "
        "KServe must be installed",
        409: "somebody else changes the object; deploy again when they are done",
        422: "an object cannot be changed like that, or the cluster's rules forbid it; see above",
    }
    kind = ConfigError if cause.status == 404 else ResourceError
    return kind(message, where=where, remedy=remedies.get(cause.status, "see above"))


def _body(cause: ApiException) -> dict[str, Any]:
    try:
        status = json.loads(cause.body or b"{}")
    except ValueError:
        return {}
    return status if isinstance(status, dict) else {}


def _conflicts(status: dict[str, Any]) -> list[str]:
    """Return a line for each field that another manager holds."""
    causes = (status.get("details") or {}).get("causes") or []
    return [
        f"{one.get('field')}: {one.get('message')}"
        for one in causes
        if one.get("reason") == "FieldManagerConflict"
    ]
