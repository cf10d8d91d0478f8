"""The Kubernetes objects of a release: one version of a model with the settings of its deployment.

The template objects.yaml.j2 is rendered here, and `check_objects` checks that the resulting objects
are consistent with each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from arcloop.artifacts.atomic import sha256_json
from arcloop.display.html import render_template
from arcloop.errors import ConfigError
from arcloop.serving.kubernetes.settings import KubernetesSettings
from arcloop.serving.model_store import archive_file_name
from arcloop.serving.servers.config_files import server_configs
from arcloop.serving.servers.entrypoint import CONFIG_FILES

Object = dict[str, Any]
MANAGER = "arcloop"
"""Field manager of server-side apply."""
MODELS = "/models"
"""Mount path of the model store."""
SCRATCH = "/tmp"  # noqa: S108 - mount path of the only volume that the pod can write to
USER = 1000
"""User ID in serving/Dockerfile."""
RELEASE_LABEL = "arcloop/release"
"""Label of a pod: hash of the pod template."""
_CONFIG = "/etc/arcloop"


@dataclass(frozen=True)
class Release:
    """A version of a model and the settings of its deployment.

    Attributes:
        version: Version of the archive.
        lineage: Role -> hash of the artifacts that the archive was made from.
        forced: Whether the archive is deployed although its gate did not pass.
        settings: Settings of the deployment.
    """

    version: str
    lineage: Mapping[str, str]
    forced: bool
    settings: KubernetesSettings

    @classmethod
    def of(cls, manifest: Mapping[str, Any], settings: KubernetesSettings) -> Release:
        """Return the release of the archive with this manifest."""
        return cls(manifest["version"], manifest["parents"], manifest["forced"], settings)

    @property
    def selector(self) -> dict[str, str]:
        """Labels of all pods of the app, of any version."""
        return {
            "app.kubernetes.io/name": "arcloop-server",
            "app.kubernetes.io/instance": self.settings.app,
        }

    @property
    def config(self) -> dict[str, str]:
        """Name -> content of the config file of the server in the pod."""
        address = self.settings.pod_address
        settings = dataclasses.replace(self.settings, host=address)
        archive = Path(MODELS) / archive_file_name(settings.name, self.version)
        file = CONFIG_FILES[settings.server]
        return {file: server_configs(settings, archive, metrics_host=address)[file]}

    @property
    def config_name(self) -> str:
        """Name of the ConfigMap; it contains a hash, so every version of the config has its own."""
        return f"{self.settings.app}-config-{_short_hash(self.config)}"


def manifest_yaml(release: Release) -> str:
    """Render the objects of a release as YAML, for `kubectl apply --server-side -f -`.

    Raises:
        ConfigError: The objects do not fit together.
    """
    text = render_template(
        Path(__file__).with_name("objects.yaml.j2"),
        filters={"short_hash": _short_hash},
        release=release,
        settings=release.settings,
        manager=MANAGER,
        release_label=RELEASE_LABEL,
        user=USER,
        config_path=_CONFIG,
        models_path=MODELS,
        scratch_path=SCRATCH,
    )
    check_objects(list(yaml.safe_load_all(text)), release.settings.response_timeout_s)
    return text


def make_objects(release: Release) -> list[Object]:
    """Return all objects in the order in which to apply them: objects that pods need come first.

    The last object is the workload: the Deployment or the InferenceService.

    Raises:
        ConfigError: The objects do not fit together.
    """
    return list(yaml.safe_load_all(manifest_yaml(release)))


def _short_hash(value: object) -> str:
    """Return a hash of a JSON value that is short enough for a name or a label."""
    return sha256_json(value)[:12]


def check_objects(objects: Sequence[Object], max_request_s: float) -> None:
    """Check that the objects of a release fit together.

    An API server validates each object alone, also in a dry run. It accepts a Service that selects
    no pod, or a probe of a port on which no container listens. The rollout then never ends, or the
    Service never answers.

    Args:
        objects: All objects of a release; the last one is the workload.
        max_request_s: Duration of the longest request, in seconds.

    Raises:
        ConfigError: The objects do not fit together; the message lists every fault.
    """
    spec = objects[-1]["spec"]
    template = spec.get("template") or {"metadata": spec["predictor"], "spec": spec["predictor"]}
    faults = [
        f"{_name(obj)}: {fault}"
        for obj in objects
        for fault in [*_selector_faults(obj, template), *_port_faults(obj, template)]
    ]
    faults += _autoscaler_faults(objects, template["spec"])
    faults += _pod_faults(objects, template["spec"], max_request_s)
    if faults:
        raise ConfigError(
            "\n".join(["the objects contradict each other:", *faults]),
            remedy="change the settings in the group deploy; nothing was applied",
        )


def _selector_faults(obj: Object, template: Object) -> Iterator[str]:
    """Yield the labels that an object selects but the pods do not have."""
    spec, labels = obj.get("spec", {}), template["metadata"]["labels"]
    selector = spec.get("podSelector", spec.get("selector"))
    if selector is None:
        return
    wanted = selector.get("matchLabels", selector)  # a Service has no matchLabels
    if not wanted:
        yield "it selects every pod of the namespace"
    for key, value in wanted.items():
        if labels.get(key) != value:
            yield f"it selects {key}={value}, but the pods have {key}={labels.get(key)}"


def _port_faults(obj: Object, template: Object) -> Iterator[str]:
    """Yield the ports of a Service or a policy on which no container listens."""
    known = {
        port[key]
        for container in template["spec"]["containers"]
        for port in container["ports"]
        for key in ("name", "containerPort")
    }
    if obj["kind"] == "Service":
        for port in obj["spec"]["ports"]:
            if port["targetPort"] not in known:
                yield f"no container has a port {port['targetPort']!r}"
    elif obj["kind"] == "NetworkPolicy":
        allowed = {port["port"] for rule in obj["spec"]["ingress"] for port in rule["ports"]}
        if not known & allowed:
            yield "it allows no port of the pods"


def _autoscaler_faults(objects: Sequence[Object], pod: Object) -> Iterator[str]:
    """Yield the reasons why the autoscaler cannot scale the workload."""
    for scaler in (obj["spec"] for obj in objects if "scaleTargetRef" in obj.get("spec", {})):
        target = f"{scaler['scaleTargetRef']['kind']}/{scaler['scaleTargetRef']['name']}"
        if target not in map(_name, objects):
            yield f"the autoscaler scales {target}, which does not exist"
        if "replicas" in objects[-1]["spec"]:
            yield f"{_name(objects[-1])} sets replicas, which the autoscaler changes"
        resource = scaler["metrics"][0]["resource"]["name"]
        if any(resource not in c["resources"]["requests"] for c in pod["containers"]):
            yield f"the autoscaler needs a {resource} request, of which its target is a percentage"


def _pod_faults(objects: Sequence[Object], pod: Object, max_request_s: float) -> Iterator[str]:
    """Yield missing objects and ports, volumes that are not mounted, and too short grace periods.

    Claims and pull secrets are not checked, because users create them.
    """
    names = set(map(_name, objects))
    wanted = [f"ServiceAccount/{pod['serviceAccountName']}"]
    wanted += [f"ConfigMap/{v['configMap']['name']}" for v in pod["volumes"] if "configMap" in v]
    yield from (f"{name} does not exist" for name in wanted if name not in names)
    for container in pod["containers"]:
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        for volume in pod["volumes"]:
            if volume["name"] not in mounted:
                yield f"no container mounts the volume {volume['name']}"
        ports = [port[key] for port in container["ports"] for key in ("name", "containerPort")]
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            port = container[kind].get("httpGet", {}).get("port")
            if port is not None and port not in ports:
                yield f"the {kind} requests port {port!r}, which the container does not have"
        grace_s, drain_s = (
            pod["terminationGracePeriodSeconds"],
            float(container["lifecycle"]["preStop"]["exec"]["command"][1]),
        )
        if grace_s <= drain_s + max_request_s:
            yield (
                f"the grace period of {grace_s} s is too short for {drain_s:g} s of preStop and "
                f"{max_request_s:g} s of the longest request"
            )


def _name(obj: Object) -> str:
    return f"{obj['kind']}/{obj['metadata']['name']}"
