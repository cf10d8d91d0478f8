"""Where and how a task runs: resources, volumes, node selectors, secrets, retries and cache."""

from collections.abc import Mapping
from typing import Any

from kfp import kubernetes

from arcloop.config.project import project_hash
from arcloop.kfp.config import ClusterSettings, NotifySettings, StepSettings
from arcloop.kfp.placement.mounts import mounts
from arcloop.kfp.pod.steps import PROJECT_HASH, STORES
from arcloop.kfp.pod.storage import CHECKPOINTS, VOLUME
from arcloop.pipeline.steps import STEPS

_RETRY_PERIOD = f"{10 * 365 * 24 * 3600}s"
"""Ten years. After this time, counted from the start of the first attempt, Argo starts no retry and
ends a running one. Without a value, kfp writes one hour."""
SCRATCH = {"gcs-scratch": "/gcs", "s3-scratch": "/s3", "minio-scratch": "/minio"}
"""Volume of KFP's pods -> mount path: the artifacts, by the scheme of the pipeline root."""
_SMALL = StepSettings(title="", cpu="500m", memory="1G")


def configure(task: Any, name: str, settings: ClusterSettings, notify: NotifySettings) -> None:
    """Set resources, volumes, selectors, retries, cache and title of a task."""
    step = settings.steps.get(name, _SMALL)
    if name == "train" and settings.train == "trainjob":  # the nodes get the resources instead
        step = _SMALL.model_copy(update={"title": step.title, "timeout_s": step.timeout_s})
    task.set_display_name(step.title or name)
    task.set_caching_options(settings.cache and name in STEPS)
    _set_resources(task, step)
    if not settings.is_local and (expected := project_hash()):
        task.set_env_variable(PROJECT_HASH, expected)
    for variable, setting in settings.env.items():
        task.set_env_variable(variable, str(setting))
    if settings.retries.count:
        task.set_retry(
            settings.retries.count,
            backoff_duration=f"{settings.retries.wait_s}s",
            backoff_factor=settings.retries.factor,
            backoff_max_duration=_RETRY_PERIOD,
        )
    if settings.platform == "kubernetes":
        _set_pod(task, name, step, settings, notify)


def _set_pod(
    task: Any, name: str, step: StepSettings, settings: ClusterSettings, notify: NotifySettings
) -> None:
    """Set what only Kubernetes has; it becomes the second document of the IR YAML."""
    if step.shm:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=step.shm)  # noqa: S108
    if step.ephemeral:
        # The pod has these volumes already. A volume of the same name is merged into it.
        for volume, path in SCRATCH.items():
            kubernetes.empty_dir_mount(task, volume, path, size_limit=step.ephemeral)
    _schedule(task, step, settings)
    _describe_pod(task, step, settings)
    kubernetes.set_image_pull_policy(task, settings.pull_policy)
    if settings.pull_secrets:
        kubernetes.set_image_pull_secrets(task, settings.pull_secrets)
    _mount_volumes(task, name, settings)
    webhook = {notify.secret: {notify.key: notify.webhook_env}} if notify.secret else {}
    secrets: Mapping[str, Any] = webhook if name.startswith("notify") else settings.secrets
    for secret, keys in secrets.items():
        kubernetes.use_secret_as_env(task, secret, keys)


def _set_resources(task: Any, step: StepSettings) -> None:
    if step.cpu:
        task.set_cpu_request(step.cpu).set_cpu_limit(step.cpu)
    if step.memory:
        task.set_memory_request(step.memory).set_memory_limit(step.memory)
    if step.gpus:
        task.set_accelerator_type(step.gpu_type).set_accelerator_limit(step.gpus)


def _schedule(task: Any, step: StepSettings, settings: ClusterSettings) -> None:
    """Set node selectors, node affinity and tolerations."""
    for label, value in {**settings.node_selector, **step.node_selector}.items():
        kubernetes.add_node_selector(task, label, value)
    requirements = [r.model_dump() for r in [*settings.node_affinity, *step.node_affinity]]
    required = [r for r in requirements if r["weight"] is None]
    if required:  # of several terms, a pod needs to fulfil only one; of a term, all expressions
        kubernetes.add_node_affinity(task, match_expressions=required)
    for preferred in (r for r in requirements if r["weight"] is not None):
        kubernetes.add_node_affinity(
            task, match_expressions=[preferred], weight=preferred["weight"]
        )
    for toleration in [*settings.tolerations, *step.tolerations]:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))


def _describe_pod(task: Any, step: StepSettings, settings: ClusterSettings) -> None:
    """Set labels, annotations, identity and the time limit of the pod."""
    for label, value in sorted({**settings.labels, **step.labels}.items()):
        kubernetes.add_pod_label(task, label, value)
    for annotation, value in sorted({**settings.annotations, **step.annotations}.items()):
        kubernetes.add_pod_annotation(task, annotation, value)
    if identity := settings.security.model_dump(exclude_none=True):
        kubernetes.set_security_context(task, **identity)
    if step.timeout_s:
        kubernetes.set_timeout(task, step.timeout_s)


def _mount_volumes(task: Any, name: str, settings: ClusterSettings) -> None:
    if settings.storage == "pvc":
        task.set_env_variable(VOLUME, settings.volume.mount)
    elif settings.checkpoints and name in ("train", "clean"):
        variable = CHECKPOINTS if name == "train" else VOLUME
        task.set_env_variable(variable, settings.checkpoints.mount)
    if name in ("deploy", "register") and not settings.is_local:
        task.set_env_variable(STORES, settings.volume.mount)
    for claim, path in mounts(name, settings).items():
        kubernetes.mount_pvc(task, claim, path)
