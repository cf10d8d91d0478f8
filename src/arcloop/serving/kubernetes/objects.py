"""A release -> the objects that a cluster is asked for."""

from __future__ import annotations

from typing import Any

from arcloop.serving.kubernetes.kserve import inference_service
from arcloop.serving.kubernetes.pod import INFERENCE, pod_template
from arcloop.serving.kubernetes.release import Release
from arcloop.serving.kubernetes.settings import KServeSettings

Object = dict[str, Any]


def objects_of(release: Release) -> list[Object]:
    """Return all objects, in the order in which they are to be applied: what pods need comes first.

    The last one is the workload: what runs the pods.
    """
    if isinstance(release.settings, KServeSettings):
        around = [network_policy(release), service_account(release), config_map(release)]
        return [*around, disruption_budget(release), inference_service(release, release.settings)]
    objects = [
        network_policy(release),
        service_account(release),
        config_map(release),
        service(release),
        disruption_budget(release),
    ]
    if release.settings.autoscaled:
        objects.append(autoscaler(release))
    return [*objects, deployment(release)]


def deployment(release: Release) -> Object:
    """Return the Deployment: a new pod has to be ready before an old one goes."""
    settings = release.settings
    spec: Object = {
        "revisionHistoryLimit": settings.keep,
        "progressDeadlineSeconds": settings.progress_deadline_s,
        "selector": {"matchLabels": release.selector},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
        },
        "template": pod_template(release),
    }
    if not settings.autoscaled:  # else the number is the autoscaler's
        spec["replicas"] = settings.replicas
    return _object("apps/v1", "Deployment", release, spec=spec)


def service(release: Release) -> Object:
    """Return the Service, of the inference port and no other."""
    settings = release.settings
    port = {
        "name": INFERENCE,
        "port": settings.service_port,
        "targetPort": INFERENCE,
        "protocol": "TCP",
    }
    spec = {"type": settings.service_type, "selector": release.selector, "ports": [port]}
    return _object("v1", "Service", release, spec=spec)


def service_account(release: Release) -> Object:
    """Return an account that may do nothing, whose token no pod gets."""
    return _object("v1", "ServiceAccount", release, automountServiceAccountToken=False)


def config_map(release: Release) -> Object:
    """Return the server's config. It never changes: another content has another name."""
    made = _object("v1", "ConfigMap", release, data=release.config, immutable=True)
    made["metadata"]["name"] = release.config_name
    return made


def disruption_budget(release: Release) -> Object:
    """Return the bound on pods that a drained node may take away at a time."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": release.selector}}
    return _object("policy/v1", "PodDisruptionBudget", release, spec=spec)


def autoscaler(release: Release) -> Object:
    """Return what keeps the pods' CPU use near its target."""
    settings = release.settings
    target = {"type": "Utilization", "averageUtilization": settings.target_cpu_percent}
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": settings.app},
        "minReplicas": settings.replicas,
        "maxReplicas": settings.max_replicas,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
    }
    return _object("autoscaling/v2", "HorizontalPodAutoscaler", release, spec=spec)


def network_policy(release: Release) -> Object:
    """Return who may reach the pods: all or some for questions, the scraper for metrics.

    They may reach nobody: an answer needs nothing from elsewhere.
    """
    settings = release.settings
    questions: Object = {"ports": [_tcp(settings.inference_port)]}
    if settings.client_namespaces:
        questions["from"] = [{"namespaceSelector": _named(n)} for n in settings.client_namespaces]
    scraper: Object = {"namespaceSelector": _named(settings.scraper_namespace)}
    if settings.scraper_labels:
        scraper["podSelector"] = {"matchLabels": dict(settings.scraper_labels)}
    metrics = {"from": [scraper], "ports": [_tcp(settings.metrics_port)]}
    spec = {
        "podSelector": {"matchLabels": release.selector},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [questions, metrics],
        "egress": [],
    }
    return _object("networking.k8s.io/v1", "NetworkPolicy", release, spec=spec)


def _tcp(port: int) -> Object:
    return {"port": port, "protocol": "TCP"}


def _named(namespace: str) -> Object:
    return {"matchLabels": {"kubernetes.io/metadata.name": namespace}}


def _object(api: str, kind: str, release: Release, **rest: Any) -> Object:
    metadata = {
        "name": release.settings.app,
        "namespace": release.settings.namespace,
        "labels": release.labels,
        "annotations": release.annotations,
    }
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}
