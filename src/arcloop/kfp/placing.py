"""Cluster settings -> tasks: where each runs and with what. Everything is fixed at compile time."""

from __future__ import annotations

import dataclasses
from typing import Any

from kfp import kubernetes

from arcloop.kfp.cluster_settings import ClusterSettings, NotifySettings, Retries, StepSettings

_SMALL = StepSettings(title="", cpu="500m", memory="1Gi")


def place_step(task: Any, name: str, settings: ClusterSettings) -> Any:
    """Place a task of the table: resources, volumes, selectors, retries, cache, title."""
    step = settings.steps.get(name, _SMALL)
    if name == "trainjob":  # the nodes of the job get what the step would
        step = dataclasses.replace(_SMALL, title=settings.steps["train"].title)
    task.set_display_name(step.title or name)
    task.set_caching_options(settings.cache and name not in ("deploy", "look"))
    _give(task, step)
    _send(task, settings, step)
    _mount(task, name, settings)
    for variable, value in settings.env.items():
        task.set_env_variable(variable, str(value))
    for secret, keys in settings.secrets.items():
        kubernetes.use_secret_as_env(task, secret, {str(k): str(v) for k, v in keys.items()})
    return _retry(task, settings.retries)


def place_notice(task: Any, settings: ClusterSettings, notify: NotifySettings) -> Any:
    """Place a task that posts a message: small, never cached, with the webhook's secret."""
    task.set_display_name("notify")
    task.set_caching_options(False)
    _give(task, _SMALL)
    _send(task, settings, _SMALL)
    _mount(task, "notify", settings)
    if notify.secret:
        assert notify.webhook_env
        kubernetes.use_secret_as_env(task, notify.secret, {notify.key: notify.webhook_env})
    return task


def trainjob_settings(settings: ClusterSettings) -> dict[str, Any]:
    """Return what the train step hands to its TrainJob: the task's own needs, for every node."""
    step = settings.steps["train"]
    return {
        **dataclasses.asdict(settings.trainjob),
        "image": settings.image,
        "namespace": settings.namespace,
        "volume": dataclasses.asdict(settings.volume),
        "env": {name: str(value) for name, value in settings.env.items()},
        "secrets": settings.secrets,
        "cpu": step.cpu,
        "memory": step.memory,
        "gpus": step.gpus,
        "gpu_type": step.gpu_type,
        "shm": step.shm,
        "node_selector": {**settings.node_selector, **step.node_selector},
        "tolerations": [*settings.tolerations, *step.tolerations],
        "pull_secrets": settings.pull_secrets,
    }


def _give(task: Any, step: StepSettings) -> None:
    if step.cpu:
        task.set_cpu_request(step.cpu).set_cpu_limit(step.cpu)
    if step.memory:
        task.set_memory_request(step.memory).set_memory_limit(step.memory)
    if step.gpus:
        task.set_accelerator_type(step.gpu_type).set_accelerator_limit(step.gpus)
    if step.shm:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=step.shm)  # noqa: S108


def _send(task: Any, settings: ClusterSettings, step: StepSettings) -> None:
    for label, value in {**settings.node_selector, **step.node_selector}.items():
        kubernetes.add_node_selector(task, label, str(value))
    for toleration in [*settings.tolerations, *step.tolerations]:
        kubernetes.add_toleration(task, **toleration)
    kubernetes.set_image_pull_policy(task, settings.pull_policy)
    if settings.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(settings.pull_secrets))


def _mount(task: Any, name: str, settings: ClusterSettings) -> None:
    if settings.storage == "pvc":
        kubernetes.mount_pvc(task, settings.volume.claim, settings.volume.mount)
        task.set_env_variable("ARCLOOP_VOLUME", settings.volume.mount)
    elif name == "deploy" and not settings.is_local:  # the model store outlives the pod
        kubernetes.mount_pvc(task, settings.volume.claim, settings.volume.mount)
    if name in ("look", "prepare"):
        for claim, path in settings.data_volumes.items():
            kubernetes.mount_pvc(task, claim, str(path))


def _retry(task: Any, retries: Retries) -> Any:
    if retries.count:
        task.set_retry(
            retries.count,
            backoff_duration=f"{retries.wait_s}s",
            backoff_factor=retries.factor,
            backoff_max_duration=f"{retries.longest_s}s",
        )
    return task
