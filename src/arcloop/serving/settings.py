"""Typed settings of a deployment: values live in conf/deploy/, their types and ranges here."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from arcloop.config.composition import compose_config, recorded_overrides, to_plain
from arcloop.config.value_types import (
    NonNegativeInt,
    Port,
    PositiveFloat,
    PositiveInt,
    field_types,
    find_mismatches,
)
from arcloop.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
PORTS = (
    "inference_port", "management_port", "metrics_port",
    "grpc_inference_port", "grpc_management_port",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DeploySettings:
    """How an archive is made, kept and served; the choices of conf/deploy/.

    Attributes:
        target: Where it is served: this machine, a Deployment, or KServe.
        name: Of the model, in its URL and file name: letters, digits, "-" and "_".
        model_store: Folder of the versions of this one name.
        keep: Versions that stay loadable. The live one and the one before it always do.
        server: Which server answers.
        host: Address the inference port listens on.
        inference_port: Where questions are asked.
        management_port: TorchServe's management, on loopback only.
        metrics_port: TorchServe's metrics, on loopback only.
        grpc_inference_port: TorchServe's gRPC twin of the inference port, on loopback only.
        grpc_management_port: Its gRPC twin of the management port, on loopback only.
        model_api: Let TorchServe's management, which is on loopback, register and remove archives
            of the model store: what roll.py needs. On this machine only.
        workers: Processes that hold the model.
        batch_size: Most requests answered in one pass.
        max_batch_delay_ms: Longest wait for a batch to fill.
        queue_size: Requests that wait; more are refused at once with 503.
        response_timeout_s: Longest time for an answer.
        startup_timeout_s: Longest time for a worker to load the model.
        netty_threads: Threads of TorchServe's front end.
        max_request_bytes: Largest request body.
        max_pixels: Largest width x height of an image that is decoded.
        default_k: Neighbours in an answer where the request names no k.
        max_k: Most neighbours a request may ask for.
        memory_map: Leave the index on disk and read its pages as needed.
        parity_tolerance: Largest difference of a similarity between the server's answer and the
            answer of the run's stored embeddings.
        thumbnails: Most gallery rows for the page of a second server on this machine to show
            pictures; a larger gallery has none. 0: none.

    Raises:
        ConfigError: Names every value that does not fit.
    """

    target: Literal["local", "kubernetes", "kserve"]
    name: str
    model_store: str
    keep: Annotated[int, Field(ge=2)]
    server: Literal["torchserve", "fastapi"]
    host: str
    inference_port: Port
    management_port: Port
    metrics_port: Port
    grpc_inference_port: Port
    grpc_management_port: Port
    model_api: bool
    workers: PositiveInt
    batch_size: PositiveInt
    max_batch_delay_ms: NonNegativeInt
    queue_size: PositiveInt
    response_timeout_s: PositiveInt
    startup_timeout_s: PositiveInt
    netty_threads: PositiveInt
    max_request_bytes: PositiveInt
    max_pixels: PositiveInt
    default_k: PositiveInt
    max_k: PositiveInt
    memory_map: bool
    parity_tolerance: PositiveFloat
    thumbnails: NonNegativeInt

    def __post_init__(self) -> None:
        faults = list(find_mismatches(vars(self), field_types(type(self)), "deploy"))
        faults = faults or list(self._contradictions())
        if faults:
            raise ConfigError("\n".join(faults), remedy="change the values")

    def _contradictions(self) -> Iterator[str]:
        if not _NAME.fullmatch(self.name):
            yield f"deploy.name={self.name!r} must be letters, digits, '-' and '_'; at most 63"
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            yield f"deploy.host={self.host!r} must be an IP address, e.g. 127.0.0.1 or 0.0.0.0"
        taken: dict[int, str] = {}
        for name in PORTS:
            other = taken.setdefault(getattr(self, name), name)
            if other != name:
                yield f"deploy.{name}={getattr(self, name)} is deploy.{other} already"
        if self.model_api and self.target != "local":
            yield "deploy.model_api=true is for this machine: a cluster replaces pods instead"
        if self.default_k > self.max_k:
            yield f"deploy.default_k={self.default_k} must not exceed deploy.max_k={self.max_k}"


@dataclass(frozen=True)
class Request:
    """What a serving command was asked to do: for which run, how, and whether past the gate."""

    run_dir: Path
    settings: DeploySettings
    force: bool


def read_request(overrides: Sequence[str]) -> Request:
    """Compose the config as `arcloop` does, the run's own overrides first, and check it.

    Args:
        overrides: Hydra overrides, e.g. ["run_dir=runs/mnist", "deploy.keep=5"].

    Raises:
        ConfigError: Anything about it is wrong.
    """
    config = to_plain(compose_config([*recorded_overrides(overrides), *overrides]))
    settings = settings_of(config["deploy"])
    return Request(Path(config["run_dir"]), settings, config["force"])


def settings_of(node: Mapping[str, Any]) -> DeploySettings:
    """Make the settings of a plain `deploy` node.

    Raises:
        ConfigError: A key is missing or unknown, or a value does not fit.
    """
    from arcloop.serving.kubernetes.settings import (  # they are DeploySettings too
        KServeSettings,
        KubernetesSettings,
    )

    kinds: dict[str, type[DeploySettings]] = {
        "kubernetes": KubernetesSettings,
        "kserve": KServeSettings,
    }
    kind = kinds.get(node.get("target", ""), DeploySettings)
    known = [field.name for field in dataclasses.fields(kind)]
    faults = [f"there is no key deploy.{key}" for key in node if key not in known]
    faults += [f"deploy.{name} is required" for name in known if name not in node]
    if faults:
        raise ConfigError("\n".join(faults), remedy=f"known keys: {', '.join(known)}")
    return kind(**node)
