"""The config files of the servers: config.properties, http-server.json and model-config.yaml."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import yaml

from arcloop.errors import ConfigError
from arcloop.serving.servers.entrypoint import CONFIG_FILES
from arcloop.serving.settings import DeploySettings

_TORCHSERVE = Path(__file__).with_name("config.properties")
_FASTAPI_KEYS = (
    "name", "host", "inference_port", "metrics_port", "workers", "batch_size", "queue_size",
    "response_timeout_s", "max_request_bytes", "max_inflight_bytes", "max_connections",
    "idle_timeout_s",
)  # fmt: skip
_HANDLER_KEYS = (
    "workers", "max_pixels", "default_k", "max_k", "memory_map", "parity_tolerance",
)  # fmt: skip


def server_configs(
    settings: DeploySettings, archive: Path, *, metrics_host: str | None = None
) -> dict[str, str]:
    """Return the config files with which each server serves one archive: file name -> text.

    Args:
        settings: Addresses, sizes and limits.
        archive: Absolute path of the .mar in the model store.
        metrics_host: Address that the metrics port listens on. If it is None, the port of
            TorchServe listens on loopback, and the FastAPI server has /metrics at the inference
            port.

    Raises:
        ConfigError: A path contains characters that config.properties does not support.
    """
    for line in map(str, (archive.parent, archive.name)):
        if not line.isprintable() or "\\" in line:
            raise ConfigError(
                f"config.properties cannot contain {line!r}",
                remedy="choose a deploy.model_store without backslashes and control characters",
            )
    torchserve = _TORCHSERVE.read_text(encoding="utf-8").format(
        settings=settings,
        archive=archive,
        host=url_host(settings.host),
        metrics_host=url_host(metrics_host or "127.0.0.1"),
        model_api=str(settings.model_api).lower(),
    )
    fastapi = {key: getattr(settings, key) for key in _FASTAPI_KEYS}
    fastapi |= {"archive": archive.name, "metrics_host": metrics_host}
    return {
        CONFIG_FILES["torchserve"]: torchserve,
        CONFIG_FILES["fastapi"]: json.dumps(fastapi, indent=2) + "\n",
    }


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
    """Return an IP address in the form that a URL requires: IPv6 addresses in brackets."""
    return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
