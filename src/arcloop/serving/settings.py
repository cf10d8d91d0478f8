"""Typed settings of a deployment. The defaults are in conf/deploy/; the ranges are checked here."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

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
    """How an archive is made, stored and served; the values of conf/deploy/local.yaml.

    Attributes:
        target: What runs the server: this machine, a Kubernetes Deployment, or KServe.
        name: Name of the model in URLs and file names: letters, digits, "-" and "_".
        model_store: Folder with the versions of this model.
        keep: Number of versions that stay loadable, including the live and the previous one.
        server: The server program.
        runtime: What executes the model. "torchscript": model.pt, on a GPU if there is one.
            "onnxruntime", with "_fp16" or "_int8" for the smaller files, and "aoti": the file of
            that format in the run's `export`, on the CPU. "auto": see `find_model`.
        host: IP address that the inference port listens on.
        inference_port: Port for predictions.
        management_port: TorchServe's management API, on loopback only.
        metrics_port: TorchServe's metrics, on loopback only.
        grpc_inference_port: TorchServe's gRPC inference API, on loopback only.
        grpc_management_port: TorchServe's gRPC management API, on loopback only.
        model_api: Allow TorchServe's management API to register and remove archives of the model
            store, which `arcloop roll` needs. Only for target "local".
        workers: Number of processes that load the model.
        batch_size: Maximum number of requests in a batch.
        max_batch_delay_ms: Longest time that TorchServe waits for a batch to fill.
        queue_size: Maximum number of queued requests; further requests get status 503.
        response_timeout_s: Time limit for receiving the body of a request, and for answering it.
        startup_timeout_s: Time limit for loading the model in a worker.
        netty_threads: Number of threads of TorchServe's HTTP front end.
        max_request_bytes: Largest request body.
        max_inflight_bytes: FastAPI server: largest sum of the request bodies that a worker has in
            memory; further requests get status 503.
        max_connections: FastAPI server: number of connections of a worker. A further one replaces
            the connection that has waited longest for bytes of its client.
        idle_timeout_s: FastAPI server: longest time for the head of a request, and without a byte
            of its body.
        max_pixels: Largest width x height of an image that is decoded.
        default_k: Neighbours in an answer if the request does not specify k.
        max_k: Maximum number of neighbours that a request may ask for.
        memory_map: Leave the index on disk and read its pages as needed.
        parity_tolerance: Largest allowed difference of a similarity between the server's answer
            and the answer from the run's stored embeddings.
        thumbnails: Largest gallery, in images, for which the demo page of a local FastAPI server
            shows thumbnails; 0 disables thumbnails.

    Raises:
        ConfigError: Names every invalid value.
    """

    target: Literal["local", "kubernetes", "kserve"]
    name: str
    model_store: str
    keep: Annotated[int, Field(ge=2)]
    server: Literal["torchserve", "fastapi"]
    runtime: Literal[
        "auto", "torchscript", "onnxruntime", "onnxruntime_fp16", "onnxruntime_int8", "aoti"
    ]
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
    max_inflight_bytes: PositiveInt
    max_connections: PositiveInt
    idle_timeout_s: PositiveInt
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
        used: dict[int, str] = {}
        for name in PORTS:
            other = used.setdefault(getattr(self, name), name)
            if other != name:
                yield f"deploy.{name}={getattr(self, name)} is also the value of deploy.{other}"
        if self.model_api and self.target != "local":
            yield "deploy.model_api=true requires deploy.target=local; a cluster replaces pods"
        if self.max_inflight_bytes < self.max_request_bytes:
            yield (
                f"deploy.max_inflight_bytes={self.max_inflight_bytes} must not be less than"
                f" deploy.max_request_bytes={self.max_request_bytes}"
            )
        if self.default_k > self.max_k:
            yield f"deploy.default_k={self.default_k} must not exceed deploy.max_k={self.max_k}"
