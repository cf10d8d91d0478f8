"""Check that the objects of a release fit together.

An API server validates each object alone, also in a dry run. It accepts a Service that selects no
pod, or a probe of a port on which no container listens. The rollout then never ends, or the
Service never answers. These checks find such contradictions before any object is applied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from arcloop.errors import ConfigError

Object = Mapping[str, Any]
_WORKLOADS = ("Deployment", "InferenceService")
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|PRIVATE_KEY|API_KEY", re.IGNORECASE)


def check_objects(objects: Sequence[Object], max_request_s: float) -> None:
    """Check that objects fit together.

    Args:
        objects: All objects of a release.
        max_request_s: Duration of the longest request, in seconds.

    Raises:
        ConfigError: The objects do not fit together; the message lists every fault.
    """
    faults = find_faults(objects, max_request_s)
    if faults:
        raise ConfigError(
            "\n".join(["the objects contradict each other:", *faults]),
            remedy="change the settings in the group deploy; nothing was applied",
        )


def find_faults(objects: Sequence[Object], max_request_s: float) -> list[str]:
    """Return the contradictions, each with the name of its object; see `check_objects`."""
    workload = next((obj for obj in objects if obj["kind"] in _WORKLOADS), None)
    if workload is None:
        return ["no object is a Deployment or an InferenceService"]
    template = _pod_template(workload)
    faults = list(_set_faults(objects))
    for obj in objects:
        if check := _CHECKS.get(obj["kind"]):
            faults += [f"{_name(obj)}: {fault}" for fault in check(obj, template)]
    pod_faults = [
        *_reference_faults(template["spec"], objects),
        *_spread_faults(template),
        *_container_faults(template["spec"], max_request_s),
    ]
    return faults + [f"{_name(workload)}: {fault}" for fault in pod_faults]


def _pod_template(workload: Object) -> Object:
    if workload["kind"] == "Deployment":
        template: Object = workload["spec"]["template"]
        return template
    predictor = workload["spec"]["predictor"]
    return {"metadata": {"labels": predictor.get("labels", {})}, "spec": predictor}


def _set_faults(objects: Sequence[Object]) -> Iterator[str]:
    """Yield the contradictions between objects, regardless of the pod template."""
    names = [_name(obj) for obj in objects]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"there are two objects {name}"
    namespaces = {str(obj["metadata"].get("namespace")) for obj in objects}
    if len(namespaces) != 1:
        yield f"the objects are in several namespaces: {', '.join(sorted(namespaces))}"
    scaled = [o["spec"]["scaleTargetRef"] for o in objects if "scaleTargetRef" in o.get("spec", {})]
    for target in scaled:
        if f"{target['kind']}/{target['name']}" not in names:
            yield f"the autoscaler scales {target['kind']}/{target['name']}, which does not exist"
    if scaled and any("replicas" in o["spec"] for o in objects if o["kind"] == "Deployment"):
        yield "the Deployment sets replicas, which the autoscaler changes"


def _deployment_faults(obj: Object, template: Object) -> Iterator[str]:
    yield from _selector_faults(obj["spec"]["selector"].get("matchLabels"), template)
    strategy = obj["spec"].get("strategy", {}).get("type", "RollingUpdate")
    if strategy != "RollingUpdate":
        yield f"the strategy {strategy} stops all pods before new ones are ready"


def _service_faults(obj: Object, template: Object) -> Iterator[str]:
    spec = obj["spec"]
    yield from _selector_faults(spec.get("selector"), template)
    yield from _port_faults(
        [port.get("targetPort", port["port"]) for port in spec["ports"]], template
    )


def _budget_faults(obj: Object, template: Object) -> Iterator[str]:
    spec = obj["spec"]
    yield from _selector_faults(spec["selector"].get("matchLabels"), template)
    if str(spec.get("maxUnavailable", 1)).rstrip("%") == "0" or spec.get("minAvailable") == "100%":
        yield "no pod may be evicted, so no node can be drained"


def _policy_faults(obj: Object, template: Object) -> Iterator[str]:
    spec = obj["spec"]
    yield from _selector_faults(spec["podSelector"].get("matchLabels"), template)
    rules = spec.get("ingress", ())
    allowed = [port["port"] for rule in rules for port in rule.get("ports", ()) if "port" in port]
    # A container need not declare a port that a policy gives as a number; only names are checked.
    yield from _port_faults([port for port in allowed if isinstance(port, str)], template)
    if not _port_keys(template).intersection(allowed):
        yield "it allows no port of the pods"
    if any("ports" not in rule for rule in rules):
        yield "a rule opens all ports, including management and metrics"


def _autoscaler_faults(obj: Object, template: Object) -> Iterator[str]:
    for metric in obj["spec"].get("metrics", ()):
        resource = metric.get("resource", {}).get("name")
        for container in template["spec"]["containers"]:
            if resource and resource not in container.get("resources", {}).get("requests", {}):
                yield f"its target of {resource} needs a request of {resource}"


def _inference_faults(_: Object, template: Object) -> Iterator[str]:
    ports = [port for c in template["spec"]["containers"] for port in c.get("ports", ())]
    if len(ports) != 1:
        yield "KServe publishes every port of the predictor; declare only the inference port"


def _selector_faults(selector: Mapping[str, str] | None, template: Object) -> Iterator[str]:
    labels = template["metadata"].get("labels", {})
    if not selector:
        yield "it selects every pod of the namespace"
        return
    for key, value in selector.items():
        if labels.get(key) != value:
            yield f"it selects {key}={value}, but the pods have {key}={labels.get(key)}"


def _port_faults(ports: Sequence[object], template: Object) -> Iterator[str]:
    known = _port_keys(template)
    for port in ports:
        if port not in known:
            yield f"no container has a port {port!r}"


def _port_keys(template: Object) -> set[object]:
    """Return names and numbers of all ports of the containers."""
    containers = template["spec"]["containers"]
    ports = [port for container in containers for port in container.get("ports", ())]
    return {port.get(key) for port in ports for key in ("name", "containerPort")}


def _reference_faults(spec: Object, objects: Sequence[Object]) -> Iterator[str]:
    """Yield references to missing objects, except claims and pull secrets, which users create."""
    names = {_name(obj) for obj in objects}
    account = spec.get("serviceAccountName", "default")
    if f"ServiceAccount/{account}" not in names:
        yield f"the ServiceAccount {account} does not exist"
    mounted = {mount["name"] for c in spec["containers"] for mount in c.get("volumeMounts", ())}
    for volume in spec.get("volumes", ()):
        config = volume.get("configMap", {}).get("name")
        if config is not None and f"ConfigMap/{config}" not in names:
            yield f"the ConfigMap {config} does not exist"
        if volume["name"] not in mounted:
            yield f"no container mounts the volume {volume['name']}"


def _spread_faults(template: Object) -> Iterator[str]:
    labels = template["metadata"].get("labels", {})
    for constraint in template["spec"].get("topologySpreadConstraints", ()):
        if not constraint["labelSelector"]["matchLabels"].items() <= labels.items():
            yield f"the spread over {constraint['topologyKey']} counts pods of other apps"


def _container_faults(spec: Object, max_request_s: float) -> Iterator[str]:
    grace = spec.get("terminationGracePeriodSeconds", 30)
    for container in spec["containers"]:
        faults = [
            *_drain_faults(container, grace, max_request_s),
            *_probe_faults(container),
            *_resource_faults(container.get("resources", {})),
        ]
        faults += [
            f"the value of {variable['name']} belongs in a Secret"
            for variable in container.get("env", ())
            if "value" in variable and _SECRET.search(variable["name"])
        ]
        yield from (f"container {container['name']}: {fault}" for fault in faults)


def _drain_faults(container: Object, grace_s: float, max_request_s: float) -> Iterator[str]:
    command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
    if not command:
        yield "it has no preStop hook, so requests fail when a pod ends"
        return
    drain_s = float(command[1]) if command[0] == "sleep" else 0.0
    if grace_s <= drain_s + max_request_s:
        yield (
            f"the grace period of {grace_s} s is too short for {drain_s:g} s of preStop and "
            f"{max_request_s:g} s of the longest request"
        )


def _probe_faults(container: Object) -> Iterator[str]:
    ports = {port.get(k) for port in container.get("ports", ()) for k in ("name", "containerPort")}
    for kind in _PROBES:
        probe = container.get(kind)
        if probe is None:
            yield f"it has no {kind}"
            continue
        for handler in ("httpGet", "tcpSocket", "grpc"):
            if handler in probe and probe[handler].get("port") not in ports:
                yield f"the {kind} asks port {probe[handler].get('port')!r}, which it does not have"
        if probe.get("timeoutSeconds", 1) > probe.get("periodSeconds", 10):
            yield f"the time-out of the {kind} is longer than its period"


def _resource_faults(resources: Object) -> Iterator[str]:
    for kind in ("cpu", "memory"):
        if kind not in resources.get("requests", {}) or kind not in resources.get("limits", {}):
            yield f"{kind} has no request or no limit"


def _name(obj: Object) -> str:
    return f"{obj['kind']}/{obj['metadata']['name']}"


_CHECKS: Mapping[str, Callable[[Object, Object], Iterator[str]]] = {
    "Deployment": _deployment_faults,
    "Service": _service_faults,
    "PodDisruptionBudget": _budget_faults,
    "NetworkPolicy": _policy_faults,
    "HorizontalPodAutoscaler": _autoscaler_faults,
    "InferenceService": _inference_faults,
}
