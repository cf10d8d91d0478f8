"""Credentials for the KFP API.

An error names the config key and never contains a part of the secret.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import kfp_server_api as api

from arcloop.errors import ArcloopError, ConfigError
from arcloop.kfp.config import ClusterSettings

_KEYS = ("token_env", "token_file", "cookie_env", "iap_client_id")
_IAP_SECONDS = 1800.0
"""Age at which a token of Identity-Aware Proxy is replaced. Google issues it for one hour."""


def connect(settings: ClusterSettings) -> api.ApiClient:
    """Return a client of the API with the host and the credentials of the settings.

    Raises:
        ConfigError: The host is missing, several kinds of credentials are set, or the variable or
            file of one contains none.
    """
    if not settings.host:
        raise ConfigError(
            "cluster.host is required", remedy="pass cluster.host=http://HOST:PORT of the KFP API"
        )
    chosen = [key for key in _KEYS if getattr(settings, key)]
    if len(chosen) > 1:
        raise ConfigError(
            f"{', '.join(f'cluster.{key}' for key in chosen)} exclude each other",
            remedy="keep one of them and set the others to null",
        )
    configuration = api.Configuration(host=settings.host.rstrip("/"))
    configuration.retries = False  # report a refused connection immediately
    configuration.ssl_ca_cert = settings.ca_cert
    configuration.api_key_prefix = {"authorization": "Bearer"}
    cookie = None
    if settings.token_env:
        token = _variable(settings.token_env, "cluster.token_env", "token")
        configuration.api_key = {"authorization": token}
    elif settings.cookie_env:
        cookie = _variable(settings.cookie_env, "cluster.cookie_env", "cookie")
        if "=" not in cookie:
            raise ConfigError(
                f"the environment variable {settings.cookie_env} contains no cookie",
                where="cluster.cookie_env",
                remedy="write it as NAME=VALUE, as the browser sends it to Kubeflow",
            )
    elif settings.token_file:
        _add_hook(configuration, _file_hook(settings.token_file))
    elif settings.iap_client_id:
        _add_hook(configuration, _iap_hook(settings.iap_client_id))
    return api.ApiClient(configuration, cookie=cookie)


def _variable(name: str, key: str, kind: str) -> str:
    """Return the secret in an environment variable."""
    secret = os.environ.get(name, "").strip()
    if not _fits_header(secret):
        fault = "which is not one line of ASCII" if secret else "or is not set"
        raise ConfigError(
            f"the environment variable {name} contains no {kind}, {fault}",
            where=key,
            remedy=f"export it, or set {key}=null",
        )
    return secret


def _fits_header(secret: str) -> bool:
    """Whether HTTP allows the secret; the error of http.client would contain it."""
    return bool(secret) and secret.isascii() and secret.isprintable()


_Hook = Callable[[api.Configuration], None]


def _add_hook(configuration: api.Configuration, hook: _Hook) -> None:
    """Call `hook` before each request. The generated client does so only if there is a key."""
    configuration.api_key = {"authorization": "-"}
    configuration.refresh_api_key_hook = hook
    hook(configuration)  # report a missing secret before any work


def _file_hook(path: str) -> _Hook:
    """Return a hook that reads the token from its file, where Kubernetes renews it."""

    def read(configuration: api.Configuration) -> None:
        try:
            token, fault = Path(path).read_text(encoding="utf-8").strip(), "contains no token"
        except (OSError, ValueError) as cause:
            reason = getattr(cause, "strerror", None) or "it is not text"
            token, fault = "", f"cannot be read: {reason}"
        if not _fits_header(token):
            raise ConfigError(
                f"the file of the service account token {fault}",
                where=f"cluster.token_file={path}",
                remedy="mount a projected token with the audience pipelines.kubeflow.org",
            )
        configuration.api_key = {"authorization": token}

    return read


def _iap_hook(client_id: str) -> _Hook:
    """Return a hook that gets a token of Identity-Aware Proxy, and a new one every half hour."""
    from google.auth.exceptions import GoogleAuthError
    from kfp.client.auth import get_auth_token

    expires = 0.0

    def refresh(configuration: api.Configuration) -> None:
        nonlocal expires
        if time.monotonic() < expires:
            return
        token, reason = None, "there are no credentials of a service account"
        try:
            token, _ = get_auth_token(client_id, None, None)
        except (GoogleAuthError, OSError, ValueError) as cause:
            reason = type(cause).__name__  # some messages contain the answer of the token service
        if not token:
            raise ArcloopError(
                f"no token for Identity-Aware Proxy: {reason}",
                where="cluster.iap_client_id",
                remedy="set GOOGLE_APPLICATION_CREDENTIALS to the key of a service account, or log "
                "in once with `kfp --iap-client-id ... --other-client-id ... run list`",
            )
        configuration.api_key = {"authorization": token}
        expires = time.monotonic() + _IAP_SECONDS

    return refresh
