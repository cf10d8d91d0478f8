"""Where and how a task runs: resources, volumes, node selectors, secrets, retries and cache."""

from collections.abc import Mapping
from typing import Any

from kfp import kubernetes

from arcloop.kfp.config import ClusterSettings, NotifySettings, StepSettings
from arcloop.kfp.storage import VOLUME
from arcloop.pipeline.steps import STEPS

_SMALL = StepSettings(title="", cpu="500m", memory="1Gi")


def configure(task: Any, name: str, settings: ClusterSettings, notify: NotifySettings) -> None:
    """Set resources, volumes, selectors, retries, cache and title of a task."""
    step = settings.steps.get(name, _SMALL)
    if name == "train" and settings.train == "trainjob":  # the nodes get the resources instead
        step = _SMALL.model_copy(update={"title": step.title})
    task.set_display_name(step.title or name)
    task.set_caching_options(settings.cache and name in STEPS)
    _set_resources(task, step)
    for label, value in {**settings.node_selector, **step.node_selector}.items():
        kubernetes.add_node_selector(task, label, value)
    for toleration in [*settings.tolerations, *step.tolerations]:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
    kubernetes.set_image_pull_policy(task, settings.pull_policy)
    if settings.pull_secrets:
        kubernetes.set_image_pull_secrets(task, settings.pull_secrets)
    _mount_volumes(task, name, settings)
    for variable, setting in settings.env.items():
        task.set_env_variable(variable, str(setting))
    webhook = {notify.secret: {notify.key: notify.webhook_env}} if notify.secret else {}
    secrets: Mapping[str, Any] = webhook if name.startswith("notify") else settings.secrets
    for secret, keys in secrets.items():
        kubernetes.use_secret_as_env(task, secret, keys)
    if settings.retries.count:
        task.set_retry(
            settings.retries.count,
            backoff_duration=f"{settings.retries.wait_s}s",
            backoff_factor=settings.retries.factor,
            backoff_max_duration=f"{settings.retries.longest_s}s",
        )


def _set_resources(task: Any, step: StepSettings) -> None:
    if step.cpu:
        task.set_cpu_request(step.cpu).set_cpu_limit(step.cpu)
    if step.memory:
        task.set_memory_request(step.memory).set_memory_limit(step.memory)
    if step.gpus:
        task.set_accelerator_type(step.gpu_type).set_accelerator_limit(step.gpus)
    if step.shm:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=step.shm)  # noqa: S108


def _mount_volumes(task: Any, name: str, settings: ClusterSettings) -> None:
    if settings.storage == "pvc":
        task.set_env_variable(VOLUME, settings.volume.mount)
    # The model store, which deploy writes, outlives the pod. `evaluate` can compare with it.
    uses_store = name in ("evaluate", "deploy") and not settings.is_local
    if settings.storage == "pvc" or uses_store:
        kubernetes.mount_pvc(task, settings.volume.claim, settings.volume.mount)
    if name in ("compute_fingerprint", "prepare"):
        for claim, path in settings.data_volumes.items():
            kubernetes.mount_pvc(task, claim, path)
