"""The config files of the servers: config.properties, http-server.json and model-config.yaml.

TorchServe has received no fixes since August 2025, so every function except inference is disabled.
The management API listens on loopback only. It can register models only with `deploy.model_api`,
and only from the model store. Neither the environment nor a request can change a setting, and
TorchServe neither installs nor downloads anything.
"""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import yaml

from arcloop.errors import ConfigError
from arcloop.serving.servers.entrypoint import FASTAPI_CONFIG, TORCHSERVE_CONFIG
from arcloop.serving.settings import DeploySettings

_FASTAPI_KEYS = (
    "name", "host", "inference_port", "metrics_port", "workers", "batch_size", "queue_size",
    "response_timeout_s", "max_request_bytes",
)  # fmt: skip
_HANDLER_KEYS = (
    "workers", "max_request_bytes", "max_pixels", "default_k", "max_k", "memory_map",
    "parity_tolerance",
)  # fmt: skip


def server_configs(settings: DeploySettings, archive: Path) -> dict[str, str]:
    """Return the config files of both servers on this machine: file name -> text."""
    return {
        TORCHSERVE_CONFIG: torchserve_properties(settings, archive),
        FASTAPI_CONFIG: fastapi_config(settings, archive),
    }


def torchserve_properties(
    settings: DeploySettings, archive: Path, *, metrics_host: str = "127.0.0.1"
) -> str:
    """Return the text of config.properties for a TorchServe that serves one archive.

    Args:
        settings: Addresses, sizes and limits.
        archive: Absolute path of the .mar in the model store.
        metrics_host: Address that the metrics port listens on.

    Raises:
        ConfigError: A path contains characters that this format does not support.
    """
    store = archive.parent
    values = {
        "inference_address": f"http://{url_host(settings.host)}:{settings.inference_port}",
        "management_address": f"http://127.0.0.1:{settings.management_port}",
        "metrics_address": f"http://{url_host(metrics_host)}:{settings.metrics_port}",
        "grpc_inference_address": "127.0.0.1",
        "grpc_management_address": "127.0.0.1",
        "grpc_inference_port": settings.grpc_inference_port,
        "grpc_management_port": settings.grpc_management_port,
        "model_store": store,
        "load_models": f"{settings.name}={archive.name}",
        "enable_model_api": settings.model_api,
        "allowed_urls": f"file://{store}/.*",
        "use_env_allowed_urls": False,
        "enable_envvars_config": False,
        "install_py_dep_per_model": False,
        # TorchServe's tokens are random and expire; use a gateway for authentication.
        "disable_token_authorization": True,
        "blacklist_env_vars": ".*(TOKEN|SECRET|PASSWORD|KEY|CREDENTIAL).*",
        "number_of_netty_threads": settings.netty_threads,
        "job_queue_size": settings.queue_size,
        "default_response_timeout": settings.response_timeout_s,
        "default_startup_timeout": settings.startup_timeout_s,
        "max_request_size": settings.max_request_bytes,
        "metrics_mode": "prometheus",
        "disable_system_metrics": True,
    }
    lines = [f"{key}={_format(value)}" for key, value in values.items()]
    invalid = [line for line in lines if not line.isprintable() or "\\" in line]
    if invalid:
        raise ConfigError(
            f"config.properties cannot contain {invalid[0]!r}",
            remedy="choose a deploy.model_store without backslashes and control characters",
        )
    return "\n".join(lines) + "\n"


def fastapi_config(
    settings: DeploySettings, archive: Path, *, metrics_host: str | None = None
) -> str:
    """Return the text of http-server.json for a FastAPI server that serves one archive.

    Args:
        settings: Addresses, sizes and limits.
        archive: Path of the .mar in the model store.
        metrics_host: Address of a separate metrics port; None: /metrics is at the inference port.
    """
    values = {key: getattr(settings, key) for key in _FASTAPI_KEYS}
    values |= {"archive": archive.name, "metrics_host": metrics_host}
    return json.dumps(values, indent=2) + "\n"


def model_config(settings: DeploySettings) -> str:
    """Return the text of model-config.yaml: TorchServe's keys, and `handler` for the predictor."""
    values = {
        "minWorkers": settings.workers,
        "maxWorkers": settings.workers,
        "batchSize": settings.batch_size,
        "maxBatchDelay": settings.max_batch_delay_ms,
        "responseTimeout": settings.response_timeout_s,
        "startupTimeout": settings.startup_timeout_s,
        "handler": {key: getattr(settings, key) for key in _HANDLER_KEYS},
    }
    return str(yaml.safe_dump(values, sort_keys=False))


def url_host(host: str) -> str:
    """Return an IP address as it is written in a URL."""
    return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host


def _format(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
