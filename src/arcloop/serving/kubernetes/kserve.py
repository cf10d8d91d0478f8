"""A release -> KServe's InferenceService, with the same image and pods.

KServe's own runtime for PyTorch has no faiss and an older TorchServe, so the predictor is a
container of ours.
"""

from __future__ import annotations

from typing import Any

from arcloop.serving.kubernetes.pod import INFERENCE, pod_template
from arcloop.serving.kubernetes.release import Release
from arcloop.serving.kubernetes.settings import KServeSettings


def inference_service(release: Release, settings: KServeSettings) -> dict[str, Any]:
    """Return the InferenceService: pods of a Deployment that KServe makes, without Knative."""
    template = pod_template(release)
    (container,) = template["spec"]["containers"]
    ports = [port for port in container["ports"] if port["name"] == INFERENCE]
    predictor: dict[str, Any] = {
        **template["spec"],
        # KServe takes the first port for the Service.
        "containers": [{**container, "name": "kserve-container", "ports": ports}],
        "labels": template["metadata"]["labels"],
        "annotations": template["metadata"]["annotations"],
        "minReplicas": settings.replicas,
        "maxReplicas": settings.max_replicas or settings.replicas,
        "scaleMetric": "cpu",
        "scaleTarget": settings.target_cpu_percent,
        "deploymentStrategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
        },
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": settings.app,
            "namespace": settings.namespace,
            "labels": release.labels,
            "annotations": {
                **release.annotations,
                "serving.kserve.io/deploymentMode": settings.deployment_mode,
            },
        },
        "spec": {"predictor": predictor},
    }
