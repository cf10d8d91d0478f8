"""The settings of the cluster and of the webhook, validated with the names of their config keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from arcloop.config.restrictions import matching
from arcloop.config.value_types import (
    FolderName,
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
)


def _check_time_zone(value: str) -> str:
    try:
        if value != "UTC":  # UTC needs no database of time zones
            ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("must be a time zone, e.g. Europe/Berlin") from None
    return value


_Model = TypeVar("_Model", bound=BaseModel)
MountPath = Annotated[str, matching(r"/.*", "a path that begins with /")]
Variable = Annotated[str, matching(r"[A-Za-z_][A-Za-z0-9_]*", "the name of a variable")]
TimeZone = Annotated[str, AfterValidator(_check_time_zone)]
StepName = Annotated[
    str, matching("|".join([*STEPS, "deploy"]), f"one of {', '.join(STEPS)}, deploy")
]


class _Settings(BaseModel):
    """Base class that rejects unknown keys, and strings in place of numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Volume(_Settings):
    """A shared volume."""

    claim: ObjectName
    mount: MountPath


class Retries(_Settings):
    """Retries of a failed task. Argo, which runs the tasks, accepts only an integer `factor`."""

    count: NonNegativeInt
    wait_s: NonNegativeInt
    factor: PositiveInt


class TrainJobSettings(_Settings):
    """Training on several nodes, by Kubeflow Trainer."""

    runtime: ObjectName
    nodes: PositiveInt
    processes: PositiveInt
    poll_s: PositiveFloat
    deadline_s: PositiveInt


class Toleration(_Settings):
    """A taint that a pod tolerates, as in Kubernetes."""

    key: LabelKey | None = None
    operator: Literal["Equal", "Exists"] | None = None
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: NonNegativeInt | None = Field(
        default=None, serialization_alias="tolerationSeconds"
    )


class NodeRequirement(_Settings):
    """A requirement on the labels of a node, as in a node affinity of Kubernetes.

    Attributes:
        weight: 1 to 100: prefer such nodes; null: require them.
    """

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: list[LabelValue] = []
    weight: Annotated[int, Field(ge=1, le=100)] | None = None


class Security(_Settings):
    """Identity of the process in a task's container; null: that of the image."""

    run_as_user: NonNegativeInt | None = None
    run_as_group: NonNegativeInt | None = None
    run_as_non_root: bool | None = None


class StepSettings(_Settings):
    """Resources and scheduling of a task, in addition to those of `ClusterSettings`."""

    title: str
    timeout_s: PositiveInt | None = None
    cpu: Quantity | None = None
    memory: Quantity | None = None
    gpus: NonNegativeInt = 0
    gpu_type: LabelKey = "nvidia.com/gpu"
    shm: Quantity | None = None
    ephemeral: Quantity | None = None
    labels: dict[LabelKey, LabelValue] = {}
    annotations: dict[LabelKey, str] = {}
    node_selector: dict[LabelKey, LabelValue] = {}
    node_affinity: list[NodeRequirement] = []
    tolerations: list[Toleration] = []


class ClusterSettings(_Settings):
    """Settings of the cluster that runs a pipeline; conf/cluster/default.yaml explains each key."""

    host: str | None
    namespace: str | None
    experiment: str
    pipeline: FolderName
    service_account: str | None
    pipeline_root: str | None
    token_env: Variable | None
    token_file: str | None
    cookie_env: Variable | None
    iap_client_id: str | None
    ca_cert: str | None
    timeout_s: PositiveInt
    poll_s: PositiveFloat
    timezone: TimeZone
    image: str | None
    fingerprint: Literal["step", "client"]
    cache: bool
    cache_version: NonNegativeInt
    storage: Literal["artifacts", "pvc"]
    volume: Volume
    checkpoints: Volume | None
    data_volumes: dict[ObjectName, MountPath]
    secrets: dict[ObjectName, dict[str, Variable]]
    env: dict[Variable, str | int | float | bool]
    labels: dict[LabelKey, LabelValue]
    annotations: dict[LabelKey, str]
    security: Security
    node_selector: dict[LabelKey, LabelValue]
    node_affinity: list[NodeRequirement]
    tolerations: list[Toleration]
    model_registry: Annotated[str, matching(r"https?://[^/]+.*", "a URL")] | None
    pull_policy: Literal["Always", "IfNotPresent", "Never"]
    pull_secrets: list[ObjectName]
    retries: Retries
    sweep: Literal["runs", "pipeline"]
    parallelism: PositiveInt | None
    study: str | None
    platform: Literal["kubernetes", "vertex"]
    train: Literal["step", "trainjob"]
    trainjob: TrainJobSettings
    steps: dict[StepName, StepSettings]
    folder: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the steps run on this machine and write their outputs to `folder`."""
        return self.folder is not None


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


def read_settings(kind: type[_Model], node: Mapping[str, Any], key: str) -> _Model:
    """Convert a plain config node to typed settings.

    Args:
        kind: `ClusterSettings` or `NotifySettings`.
        node: The node.
        key: Config key of the node, for the message.

    Raises:
        ConfigError: A setting is invalid; the message lists every such setting.
    """
    try:
        return kind.model_validate(node)
    except ValidationError as error:
        faults = [_describe(details, key) for details in error.errors(include_url=False)]
    raise ConfigError("\n".join(faults), remedy="correct the config; nothing was started")


def _describe(details: Any, key: str) -> str:
    """Convert one error of pydantic to a message that names the config key."""
    path = ".".join([key, *(str(step) for step in details["loc"] if step != "[key]")])
    message = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    match details["type"]:
        case "missing":
            return f"{path} is required"
        case "extra_forbidden":
            return f"{path} is unknown"
        case _:
            return f"{path}={details['input']!r} {message}"
