"""The pod template of a release, for the Deployment or for KServe's predictor."""

from __future__ import annotations

from typing import Any

from arcloop.serving.kubernetes.release import CONFIG, MODELS, RELEASE_LABEL, Release, short_hash
from arcloop.serving.kubernetes.settings import KubernetesSettings

INFERENCE = "http"
METRICS = "metrics"
SCRATCH = "/tmp"  # noqa: S108 - mount path of the only volume that the pod can write to
USER = 1000
"""User ID in serving/Dockerfile."""
_PROBE_PERIOD_S = 5
_CODE = "/opt/arcloop/arcloop/serving/servers"


def make_pod_template(release: Release) -> dict[str, Any]:
    """Return metadata and spec; the label `RELEASE_LABEL` contains a hash of both."""
    metadata: dict[str, Any] = {
        "labels": release.labels,
        "annotations": {
            **release.annotations,
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(release.settings.metrics_port),
            "prometheus.io/path": "/metrics",
        },
    }
    template = {"metadata": metadata, "spec": _spec(release)}
    labels = {**release.labels, RELEASE_LABEL: short_hash(template)}
    return {"metadata": {**metadata, "labels": labels}, "spec": template["spec"]}


def _spec(release: Release) -> dict[str, Any]:
    """Return the pod spec: no root user, no account token, and a single writable volume."""
    settings = release.settings
    spec: dict[str, Any] = {
        "serviceAccountName": settings.app,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": settings.grace_s,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            _spread("kubernetes.io/hostname", release),
            _spread("topology.kubernetes.io/zone", release),
        ],
        "containers": [_container(release)],
        "volumes": _volumes(release),
    }
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    if settings.node_selector:
        spec["nodeSelector"] = dict(settings.node_selector)
    if settings.tolerations:
        spec["tolerations"] = [dict(toleration) for toleration in settings.tolerations]
    return spec


def _container(release: Release) -> dict[str, Any]:
    settings = release.settings
    return {
        "name": "server",
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "args": [
            settings.server, f"--config={CONFIG}", f"--store={MODELS}", f"--scratch={SCRATCH}",
        ],
        "env": [
            {"name": "HOME", "value": SCRATCH},
            {"name": "TMPDIR", "value": SCRATCH},
        ],
        # The management API is not listed, because it listens on the pod's loopback address.
        "ports": [
            {"name": INFERENCE, "containerPort": settings.inference_port, "protocol": "TCP"},
            {"name": METRICS, "containerPort": settings.metrics_port, "protocol": "TCP"},
        ],
        "startupProbe": {
            **_model_probe(settings),
            "periodSeconds": _PROBE_PERIOD_S,
            "timeoutSeconds": _PROBE_PERIOD_S,
            "failureThreshold": -(-settings.startup_timeout_s // _PROBE_PERIOD_S) + 1,
        },
        "readinessProbe": {
            **_model_probe(settings),
            "periodSeconds": _PROBE_PERIOD_S,
            "timeoutSeconds": _PROBE_PERIOD_S,
            "failureThreshold": 3,
        },
        # Probes only the front end, so that the pod is not restarted while the model is busy.
        "livenessProbe": {
            "httpGet": {"path": "/ping", "port": INFERENCE},
            "periodSeconds": 2 * _PROBE_PERIOD_S,
            "timeoutSeconds": _PROBE_PERIOD_S,
            "failureThreshold": 6,
        },
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(settings.drain_s)]}}},
        # Copies the end of the log to the pod's status, which `deploy` has the right to read.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": _resources(settings),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "scratch", "mountPath": SCRATCH},
            {"name": "config", "mountPath": CONFIG, "readOnly": True},
            *_model_mounts(settings),
        ],
    }  # fmt: skip


def _model_probe(settings: KubernetesSettings) -> dict[str, Any]:
    """Return a probe of the model, since TorchServe's /ping ignores failed workers."""
    if settings.server == "fastapi":
        return {"httpGet": {"path": "/ready", "port": INFERENCE}}
    arguments = [str(settings.management_port), settings.name, str(settings.workers)]
    return {
        "exec": {"command": ["python", "-I", "-S", f"{_CODE}/entrypoint.py", "ready", *arguments]}
    }


def _resources(settings: KubernetesSettings) -> dict[str, Any]:
    requests = {
        "cpu": str(settings.cpu_request),
        "memory": settings.memory_request,
        "ephemeral-storage": settings.scratch_limit,
    }
    limits = {
        "cpu": str(settings.cpu_limit),
        "memory": settings.memory_limit,
        "ephemeral-storage": settings.scratch_limit,
    }
    if settings.gpus:
        requests["nvidia.com/gpu"] = limits["nvidia.com/gpu"] = str(settings.gpus)
    return {"requests": requests, "limits": limits}


def _volumes(release: Release) -> list[dict[str, Any]]:
    settings = release.settings
    volumes: list[dict[str, Any]] = [
        {"name": "scratch", "emptyDir": {"sizeLimit": settings.scratch_limit}},
        {"name": "config", "configMap": {"name": release.config_name}},
    ]
    if settings.model_claim is not None:
        claim = {"claimName": settings.model_claim, "readOnly": True}
        volumes.append({"name": "models", "persistentVolumeClaim": claim})
    return volumes


def _model_mounts(settings: KubernetesSettings) -> list[dict[str, Any]]:
    if settings.model_claim is None:
        return []
    mount: dict[str, Any] = {"name": "models", "mountPath": MODELS, "readOnly": True}
    if settings.model_claim_path:
        mount["subPath"] = settings.model_claim_path
    return [mount]


def _spread(topology: str, release: Release) -> dict[str, Any]:
    return {
        "maxSkew": 1,
        "topologyKey": topology,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": release.selector},
        "matchLabelKeys": ["pod-template-hash"],  # do not count pods of other versions
    }
