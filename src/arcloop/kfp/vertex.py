"""The subset of a pipeline that Vertex AI Pipelines runs.

Vertex AI reads one YAML document, so it refuses the platform settings of Kubernetes. It documents
the limits of CPU and memory, accelerators, retries, caching, conditions and exit handlers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from arcloop.kfp.config import ClusterSettings, NotifySettings, StepSettings

_ABSENT = (
    "checkpoints", "data_volumes", "secrets", "labels", "annotations", "node_selector",
    "node_affinity", "tolerations", "pull_secrets", "model_registry", "service_account",
)  # fmt: skip
"""Settings of a cluster that have no equivalent in Vertex AI."""
_ABSENT_IN_STEP = (
    "shm", "ephemeral", "timeout_s", "labels", "annotations", "node_selector", "node_affinity",
    "tolerations",
)  # fmt: skip
_ACCELERATOR = re.compile("(NVIDIA|TPU)_[A-Z0-9_]+")
_MEMORY = re.compile(r"[0-9]+(\.[0-9]+)?[KMG]?")


def vertex_faults(
    config: Mapping[str, Any], settings: ClusterSettings, notify: NotifySettings, *, submits: bool
) -> Iterator[str]:
    """Yield the settings that Vertex AI Pipelines does not support.

    Args:
        config: The resolved config.
        settings: The cluster.
        notify: The webhook.
        submits: The command would submit the pipeline.
    """
    if settings.platform != "vertex":
        return
    if submits:
        yield (
            "cluster.platform=vertex has no KFP API: pass mode=compile, and submit the file with "
            "google-cloud-aiplatform"
        )
    if settings.storage == "pvc" or settings.train == "trainjob":
        yield "cluster.storage=pvc and cluster.train=trainjob need Kubernetes, not Vertex AI"
    if config["deploy"]["target"] != "local":
        yield f"deploy={config['deploy']['target']} is not possible in a task of Vertex AI"
    if notify.secret:
        yield "notify.secret is a secret of Kubernetes, which Vertex AI does not have"
    if any(value is not None for value in settings.security.model_dump().values()):
        yield "cluster.security has no equivalent in Vertex AI: set its keys to null"
    absent = [key for key in _ABSENT if getattr(settings, key)]
    absent += ["pull_policy"] if settings.pull_policy != "IfNotPresent" else []
    for key in absent:
        yield f"cluster.{key} has no equivalent in Vertex AI: remove it"
    for name, step in settings.steps.items():
        yield from _step_faults(name, step)


def _step_faults(name: str, step: StepSettings) -> Iterator[str]:
    place = f"cluster.steps.{name}"
    for key in _ABSENT_IN_STEP:
        if getattr(step, key):
            yield f"{place}.{key} has no equivalent in Vertex AI: remove it"
    if step.memory and not _MEMORY.fullmatch(str(step.memory)):
        yield f"{place}.memory={step.memory} must be a number with K, M or G, e.g. 16G"
    if step.gpus and not _ACCELERATOR.fullmatch(step.gpu_type):
        yield f"{place}.gpu_type={step.gpu_type} must be an AcceleratorType, e.g. NVIDIA_L4"
