"""Typed settings of a cluster and of notifications; conf/cluster and conf/notify have the values.

pydantic checks the types and the nested settings. The classes are plain dataclasses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from arcloop.config.value_types import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from arcloop.errors import ConfigError
from arcloop.pipeline.steps import STEPS
from arcloop.serving.kubernetes.settings import (
    LabelKey,
    LabelValue,
    ObjectName,
    Quantity,
    matching,
)

_IMAGE_DIGEST = r"[\w.:/-]+@sha256:[0-9a-f]{64}"
_T = TypeVar("_T")
MountPath = Annotated[str, matching(r"/.*", "a path that begins with /")]
Variable = Annotated[str, matching(r"[A-Za-z_][A-Za-z0-9_]*", "the name of a variable")]
StepName = Annotated[
    str, matching("|".join([*STEPS, "deploy"]), f"one of {', '.join(STEPS)}, deploy")
]


class _Settings:
    """Base class that rejects unknown keys, and strings in place of numbers."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True)
class Volume(_Settings):
    """A shared volume.

    Attributes:
        claim: Name of its PersistentVolumeClaim.
        mount: Mount path.
    """

    claim: ObjectName
    mount: MountPath


@dataclass(frozen=True, kw_only=True)
class Retries(_Settings):
    """Retries of a failed task.

    Attributes:
        count: Maximum number.
        wait_s: Seconds before the first retry.
        factor: Factor by which the wait grows with each retry.
        longest_s: Maximum wait in seconds.
    """

    count: NonNegativeInt
    wait_s: NonNegativeInt = 30
    factor: PositiveFloat = 2.0
    longest_s: NonNegativeInt = 600


@dataclass(frozen=True, kw_only=True)
class TrainJobSettings(_Settings):
    """Training on several nodes, by Kubeflow Trainer.

    Attributes:
        runtime: ClusterTrainingRuntime that starts torchrun on every node.
        nodes: Number of pods.
        processes: Processes per pod.
        poll_s: Seconds between two polls of the job's state.
        deadline_s: Maximum duration in seconds; after that the step fails.
    """

    runtime: ObjectName
    nodes: PositiveInt
    processes: PositiveInt
    poll_s: PositiveFloat
    deadline_s: PositiveInt


@dataclass(frozen=True, kw_only=True)
class Toleration(_Settings):
    """A taint that a pod tolerates, as in Kubernetes."""

    key: LabelKey | None = None
    operator: Literal["Equal", "Exists"] | None = None
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: NonNegativeInt | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields that are set."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class StepSettings(_Settings):
    """Resources and scheduling of a task, in addition to those of `ClusterSettings`.

    Attributes:
        title: Title in the UI.
        cpu: Request and limit of CPU cores.
        memory: Request and limit of memory.
        gpus: Number of accelerators.
        gpu_type: Resource name of the accelerators, e.g. nvidia.com/gpu.
        shm: Size of /dev/shm, which data loader workers share; null: 64 MiB.
        node_selector: Labels that the node must have.
        tolerations: Taints that the pod tolerates.
    """

    title: str
    cpu: Quantity | None = None
    memory: Quantity | None = None
    gpus: NonNegativeInt = 0
    gpu_type: LabelKey = "nvidia.com/gpu"
    shm: Quantity | None = None
    node_selector: dict[LabelKey, LabelValue] = field(default_factory=dict)
    tolerations: list[Toleration] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ClusterSettings(_Settings):
    """Settings of the cluster that runs a pipeline; conf/cluster/default.yaml explains each key."""

    host: str | None
    namespace: str | None
    experiment: str
    pipeline: str
    service_account: str | None
    pipeline_root: str | None
    token_env: Variable | None
    ca_cert: str | None
    timeout_s: PositiveInt
    image: str | None
    fingerprint: Literal["step", "client"]
    cache: bool
    storage: Literal["artifacts", "pvc"]
    volume: Volume
    data_volumes: dict[ObjectName, MountPath]
    secrets: dict[ObjectName, dict[str, Variable]]
    env: dict[Variable, str | int | float | bool]
    node_selector: dict[LabelKey, LabelValue]
    tolerations: list[Toleration]
    pull_policy: Literal["Always", "IfNotPresent", "Never"]
    pull_secrets: list[ObjectName]
    retries: Retries
    train: Literal["step", "trainjob"]
    trainjob: TrainJobSettings
    steps: dict[StepName, StepSettings]
    folder: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the steps run on this machine and write their outputs to `folder`."""
        return self.folder is not None


@dataclass(frozen=True, kw_only=True)
class NotifySettings(_Settings):
    """The webhook that a message is posted to at the end of a run.

    Attributes:
        webhook_env: Environment variable with the URL; null: no message.
        secret: Kubernetes secret with the URL.
        key: Key in the secret.
        timeout_s: Time-out of the request, in seconds.
    """

    webhook_env: Variable | None
    secret: str = ""
    key: str = ""
    timeout_s: NonNegativeFloat = 10


def cluster_settings(node: Mapping[str, Any]) -> ClusterSettings:
    """Convert a plain `cluster` node to settings.

    Raises:
        ConfigError: A setting is invalid; the message lists every such setting.
    """
    settings = _validate(ClusterSettings, node, "cluster")
    _raise_if_any(list(_contradictions(settings)))
    return settings


def notify_settings(node: Mapping[str, Any]) -> NotifySettings:
    """Convert a plain `notify` node to settings.

    Raises:
        ConfigError: A setting is invalid; the message lists every such setting.
    """
    return _validate(NotifySettings, node, "notify")


def _validate(settings: type[_T], node: Mapping[str, Any], key: str) -> _T:
    # Strict validation accepts a mapping for a dataclass only in JSON.
    try:
        return TypeAdapter(settings).validate_json(json.dumps(node))
    except ValidationError as error:
        _raise_if_any([_format(details, key) for details in error.errors(include_url=False)])
        raise


def _format(details: Any, key: str) -> str:
    """Return the message of an error of pydantic."""
    path = ".".join([key, *(str(step) for step in details["loc"] if step != "[key]")])
    match details["type"]:
        case "missing":
            return f"{path} is required"
        case "unexpected_keyword_argument":
            return f"{path} is unknown"
        case _:
            message = details["msg"].removeprefix("Value error, ")
            return f"{path}={details['input']!r} {message.replace('Input should be', 'must be')}"


def _raise_if_any(faults: list[str]) -> None:
    if faults:
        raise ConfigError("\n".join(faults), remedy="correct the config; nothing was started")


def _contradictions(settings: ClusterSettings) -> Iterator[str]:
    """Yield settings that are valid alone but not together."""
    if settings.is_local:
        return
    if not re.fullmatch(_IMAGE_DIGEST, settings.image or ""):
        yield (
            f"cluster.image={settings.image} must contain its digest, which is the version of the "
            "code in the cache key: set cluster.image=registry/arcloop@sha256:... or ARCLOOP_IMAGE"
        )
    if settings.train == "trainjob" and settings.storage != "pvc":
        yield "cluster.train=trainjob needs cluster.storage=pvc, whose volume its nodes share"
