"""The Kubernetes objects of a release."""

from __future__ import annotations

from typing import Any

from arcloop.serving.kubernetes.pod import INFERENCE, make_pod_template
from arcloop.serving.kubernetes.release import Release
from arcloop.serving.kubernetes.settings import KServeSettings

Object = dict[str, Any]
_ROLLING_UPDATE = {
    "type": "RollingUpdate",
    "rollingUpdate": {
        "maxUnavailable": 0,
        "maxSurge": 1,
    },  # stop a pod after its successor is ready
}


def make_objects(release: Release) -> list[Object]:
    """Return all objects in the order in which to apply them: objects that pods need come first.

    The last object is the workload: the Deployment or the InferenceService.
    """
    objects = [_network_policy(release), _service_account(release), _config_map(release)]
    if isinstance(release.settings, KServeSettings):
        service = _inference_service(release, release.settings)
        return [*objects, _disruption_budget(release), service]
    objects += [_service(release), _disruption_budget(release)]
    if release.settings.autoscaled:
        objects.append(_autoscaler(release))
    return [*objects, _deployment(release)]


def _deployment(release: Release) -> Object:
    settings = release.settings
    spec: Object = {
        "revisionHistoryLimit": settings.keep,
        "progressDeadlineSeconds": settings.progress_deadline_s,
        "selector": {"matchLabels": release.selector},
        "strategy": _ROLLING_UPDATE,
        "template": make_pod_template(release),
    }
    if not settings.autoscaled:  # otherwise the autoscaler sets the number
        spec["replicas"] = settings.replicas
    return _object("apps/v1", "Deployment", release, spec=spec)


def _service(release: Release) -> Object:
    """Return the Service, which publishes only the inference port."""
    settings = release.settings
    port = {
        "name": INFERENCE,
        "port": settings.service_port,
        "targetPort": INFERENCE,
        "protocol": "TCP",
    }
    spec = {"type": settings.service_type, "selector": release.selector, "ports": [port]}
    return _object("v1", "Service", release, spec=spec)


def _service_account(release: Release) -> Object:
    """Return an account without rights; its token is not mounted in the pods."""
    return _object("v1", "ServiceAccount", release, automountServiceAccountToken=False)


def _config_map(release: Release) -> Object:
    """Return the server's config; it is immutable, and its name contains its hash."""
    made = _object("v1", "ConfigMap", release, data=release.config, immutable=True)
    made["metadata"]["name"] = release.config_name
    return made


def _disruption_budget(release: Release) -> Object:
    """Return the budget that lets a drained node evict one pod at a time."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": release.selector}}
    return _object("policy/v1", "PodDisruptionBudget", release, spec=spec)


def _autoscaler(release: Release) -> Object:
    """Return the autoscaler, whose metric is the CPU utilization of the pods."""
    settings = release.settings
    target = {"type": "Utilization", "averageUtilization": settings.target_cpu_percent}
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": settings.app},
        "minReplicas": settings.replicas,
        "maxReplicas": settings.max_replicas,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
    }
    return _object("autoscaling/v2", "HorizontalPodAutoscaler", release, spec=spec)


def _network_policy(release: Release) -> Object:
    """Return the policy: clients reach the inference port and the scraper the metrics port.

    The pods cannot open connections, since predictions need no other service.
    """
    settings = release.settings
    requests: Object = {"ports": [_tcp(settings.inference_port)]}
    if settings.client_namespaces:
        requests["from"] = [
            {"namespaceSelector": _namespace_selector(name)} for name in settings.client_namespaces
        ]
    scraper: Object = {"namespaceSelector": _namespace_selector(settings.scraper_namespace)}
    if settings.scraper_labels:
        scraper["podSelector"] = {"matchLabels": dict(settings.scraper_labels)}
    metrics = {"from": [scraper], "ports": [_tcp(settings.metrics_port)]}
    spec = {
        "podSelector": {"matchLabels": release.selector},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [requests, metrics],
        "egress": [],
    }
    return _object("networking.k8s.io/v1", "NetworkPolicy", release, spec=spec)


def _tcp(port: int) -> Object:
    return {"port": port, "protocol": "TCP"}


def _namespace_selector(namespace: str) -> Object:
    return {"matchLabels": {"kubernetes.io/metadata.name": namespace}}


def _object(api: str, kind: str, release: Release, **rest: Any) -> Object:
    metadata = {
        "name": release.settings.app,
        "namespace": release.settings.namespace,
        "labels": release.labels,
        "annotations": release.annotations,
    }
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}


def _inference_service(release: Release, settings: KServeSettings) -> Object:
    """Return the InferenceService, from which KServe creates a Deployment, without Knative.

    KServe's own runtime for PyTorch lacks faiss, so the predictor is the container of the
    Deployment.
    """
    template = make_pod_template(release)
    (container,) = template["spec"]["containers"]
    ports = [port for port in container["ports"] if port["name"] == INFERENCE]
    predictor: Object = {
        **template["spec"],
        # KServe publishes the first port in the Service.
        "containers": [{**container, "name": "kserve-container", "ports": ports}],
        "labels": template["metadata"]["labels"],
        "annotations": template["metadata"]["annotations"],
        "minReplicas": settings.replicas,
        "maxReplicas": settings.max_replicas or settings.replicas,
        "scaleMetric": "cpu",
        "scaleTarget": settings.target_cpu_percent,
        "deploymentStrategy": _ROLLING_UPDATE,
    }
    spec = {"predictor": predictor}
    service = _object("serving.kserve.io/v1beta1", "InferenceService", release, spec=spec)
    service["metadata"]["annotations"] = {
        **release.annotations,
        "serving.kserve.io/deploymentMode": settings.deployment_mode,
    }
    return service
