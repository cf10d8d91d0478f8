"""Typed settings of a cluster and of notifications; their values live in conf/cluster, notify."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal

from arcloop.config.value_types import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_types,
    find_mismatches,
)
from arcloop.errors import ConfigError
from arcloop.pipeline.steps import STEPS

_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|[KMGTPE]i?)?")
_IMAGE = re.compile(r"[\w.:/-]+@sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
STEP_NAMES = (*STEPS, "deploy")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A PersistentVolumeClaim, by name, and where it is mounted."""

    claim: str
    mount: str


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often a failed task is tried again, after what wait; for other than `count`, see KFP."""

    count: NonNegativeInt
    wait_s: NonNegativeInt = 30
    factor: PositiveFloat = 2.0
    longest_s: NonNegativeInt = 600


@dataclass(frozen=True, kw_only=True)
class TrainJobSettings:
    """A training on nodes of its own, by Kubeflow Trainer.

    Attributes:
        runtime: ClusterTrainingRuntime that starts torchrun on every node.
        nodes: Pods.
        processes: Processes per pod.
        poll_s: Time between two looks at its state.
        deadline_s: Longest time; then it is deleted and the step fails.
    """

    runtime: str
    nodes: PositiveInt
    processes: PositiveInt
    poll_s: PositiveFloat
    deadline_s: PositiveInt


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Where one task runs and what it gets; of the cluster's settings it adds to the selectors.

    Attributes:
        title: Its name in the UI.
        cpu: Cores, requested and allowed, as Kubernetes writes them.
        memory: Memory, likewise.
        gpus: Accelerators.
        gpu_type: Their resource, e.g. nvidia.com/gpu.
        shm: Size of /dev/shm, which loader workers share; null leaves the 64 MiB of the runtime.
        node_selector: Labels that its node must have.
        tolerations: Taints that it may run on.
    """

    title: str
    cpu: str | None = None
    memory: str | None = None
    gpus: NonNegativeInt = 0
    gpu_type: str = "nvidia.com/gpu"
    shm: str | None = None
    node_selector: dict[str, Any] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Where a pipeline runs; conf/cluster/default.yaml says what each key means."""

    host: str | None
    namespace: str | None
    experiment: str
    pipeline: str
    service_account: str | None
    pipeline_root: str | None
    token_env: str | None
    ca_cert: str | None
    timeout_s: PositiveInt
    image: str | None
    fingerprint: Literal["step", "client"]
    cache: bool
    storage: Literal["artifacts", "pvc"]
    volume: Volume
    data_volumes: dict[str, Any]
    secrets: dict[str, Any]
    env: dict[str, Any]
    node_selector: dict[str, Any]
    tolerations: list[dict[str, Any]]
    pull_policy: Literal["Always", "IfNotPresent", "Never"]
    pull_secrets: list[str]
    retries: Retries
    train: Literal["step", "trainjob"]
    trainjob: TrainJobSettings
    steps: Mapping[str, StepSettings]
    folder: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether steps are processes of this machine: where there is a folder for them."""
        return self.folder is not None


@dataclass(frozen=True, kw_only=True)
class NotifySettings:
    """Who is told how a run ended; `webhook_env` null: nobody."""

    webhook_env: str | None
    secret: str = ""
    key: str = ""
    timeout_s: NonNegativeFloat = 10


def cluster_settings(node: Mapping[str, Any]) -> ClusterSettings:
    """Make the settings of a plain `cluster` node.

    Raises:
        ConfigError: Names everything that does not fit.
    """
    given = dict(node)
    faults: list[str] = []
    steps = given.pop("steps", {})
    made = {
        name: _made(StepSettings, step, f"cluster.steps.{name}", faults)
        for name, step in steps.items()
    }
    settings: ClusterSettings = _made(ClusterSettings, {**given, "steps": made}, "cluster", faults)
    if not faults:
        faults = list(_contradictions(settings))
    if faults:
        raise ConfigError("\n".join(faults), remedy="correct the config; nothing was started")
    return settings


def notify_settings(node: Mapping[str, Any]) -> NotifySettings:
    """Make the settings of a plain `notify` node.

    Raises:
        ConfigError: Names everything that does not fit.
    """
    faults: list[str] = []
    settings: NotifySettings = _made(NotifySettings, node, "notify", faults)
    if not faults and settings.webhook_env and not _VARIABLE.fullmatch(settings.webhook_env):
        faults.append(f"notify.webhook_env={settings.webhook_env!r} must be a variable's name")
    if faults:
        raise ConfigError("\n".join(faults), remedy="correct the config; nothing was started")
    return settings


def _made(kind: type, node: Mapping[str, Any], key: str, faults: list[str]) -> Any:
    """Build a dataclass of a node; what does not fit is added to `faults`."""
    known = {f.name: f for f in dataclasses.fields(kind)}
    required = [
        name
        for name, f in known.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    found = [
        f"{key}.{name} is unknown; known: {', '.join(known)}" for name in node if name not in known
    ]
    found += [f"{key}.{name} is required" for name in required if name not in node]
    hints = typing.get_type_hints(kind)
    values = dict(node)
    for name, value in node.items():
        if is_dataclass(hints.get(name)) and isinstance(value, Mapping):
            values[name] = _made(hints[name], value, f"{key}.{name}", found)
    plain = {name: value for name, value in node.items() if not is_dataclass(hints.get(name))}
    found += find_mismatches(plain, field_types(kind), key)
    faults += found
    return None if found else kind(**values)


def _contradictions(settings: ClusterSettings) -> Iterator[str]:
    yield from _step_faults(settings)
    yield from _toleration_faults(settings.tolerations, "cluster")
    yield from _name_faults(settings)
    if settings.is_local:
        return
    if not _IMAGE.fullmatch(settings.image or ""):
        yield (
            f"cluster.image={settings.image} must name its digest, for it is the code's version in "
            "the cache: cluster.image=registry/arcloop@sha256:..., or ARCLOOP_IMAGE=... around it"
        )
    if settings.train == "trainjob" and settings.storage != "pvc":
        yield "cluster.train=trainjob needs cluster.storage=pvc: its nodes share store and run"


def _step_faults(settings: ClusterSettings) -> Iterator[str]:
    for name, step in settings.steps.items():
        if name not in STEP_NAMES:
            yield f"cluster.steps.{name} is no step; steps: {', '.join(STEP_NAMES)}"
        for what in ("cpu", "memory", "shm"):
            value = getattr(step, what)
            if value is not None and not _QUANTITY.fullmatch(value):
                yield f"cluster.steps.{name}.{what}={value!r} is no quantity, e.g. 500m or 8Gi"
        yield from _toleration_faults(step.tolerations, f"cluster.steps.{name}")


def _name_faults(settings: ClusterSettings) -> Iterator[str]:
    for path in (settings.volume.mount, *settings.data_volumes.values()):
        if not str(path).startswith("/"):
            yield f"the mount path {path!r} must begin with /"
    for name in (settings.volume.claim, *settings.data_volumes, *settings.secrets):
        if not _NAME.fullmatch(name):
            yield f"{name!r} is no name that Kubernetes takes"
    for secret, keys in settings.secrets.items():
        if not isinstance(keys, dict) or not all(
            _VARIABLE.fullmatch(str(value)) for value in keys.values()
        ):
            yield f"cluster.secrets.{secret} must be {{key: ENVIRONMENT_VARIABLE}}"


def _toleration_faults(tolerations: list[dict[str, Any]], key: str) -> Iterator[str]:
    for toleration in tolerations:
        unknown = toleration.keys() - {"key", "operator", "value", "effect", "toleration_seconds"}
        if unknown:
            yield f"{key}.tolerations: {', '.join(sorted(unknown))} is unknown"
        if toleration.get("operator", "Equal") not in ("Equal", "Exists"):
            yield f"{key}.tolerations: operator must be Equal or Exists"
        if toleration.get("effect", "NoSchedule") not in (
            "NoSchedule", "PreferNoSchedule", "NoExecute",
        ):  # fmt: skip
            yield f"{key}.tolerations: effect must be NoSchedule, PreferNoSchedule or NoExecute"
