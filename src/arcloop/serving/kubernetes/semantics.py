"""What is wrong with a set of objects that each alone would be accepted.

A schema sees one object's shape. That a Service selects no pod, or a probe asks a port that nobody
listens on, an API server accepts too; it shows as a rollout that never ends, or a Service that
never answers. So it is looked for before anything is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from arcloop.errors import ConfigError
from arcloop.serving.kubernetes.pod_semantics import pod_faults
from arcloop.serving.kubernetes.syntax import (
    is_dns_label,
    is_label_key,
    is_label_value,
    is_port_name,
    is_subdomain,
)

Object = Mapping[str, Any]
_MOST_ANNOTATION_BYTES = 256 * 1024


def require_sound(objects: Sequence[Object], longest_request_s: float) -> None:
    """Check that objects fit together.

    Args:
        objects: All of a release.
        longest_request_s: Which a pod's grace period must outlast.

    Raises:
        ConfigError: Names every fault.
    """
    faults = semantic_faults(objects, longest_request_s)
    if faults:
        raise ConfigError(
            "\n".join(["the objects contradict each other:", *faults]),
            remedy="change the settings under deploy; nothing was applied",
        )


def semantic_faults(objects: Sequence[Object], longest_request_s: float) -> list[str]:
    """Return what does not fit together, each fault with the object it is in."""
    template = _template(objects)
    if template is None:
        return ["there is no workload among the objects"]
    faults = list(_set_faults(objects))
    for one in objects:
        check = _CHECKS.get(one["kind"])
        found = [*_metadata_faults(one), *(check(one, template) if check else ())]
        faults += [f"{_named(one)}: {fault}" for fault in found]
    workload = next(o for o in objects if o["kind"] in _WORKLOADS)
    found = [
        *label_faults(template["metadata"]),
        *pod_faults(template, objects, longest_request_s),
    ]
    return faults + [f"{_named(workload)}: {fault}" for fault in found]


def _template(objects: Sequence[Object]) -> Object | None:
    for one in objects:
        if one["kind"] == "Deployment":
            return one["spec"]["template"]  # type: ignore[no-any-return]
        if one["kind"] == "InferenceService":
            predictor = one["spec"]["predictor"]
            metadata = {key: predictor.get(key, {}) for key in ("labels", "annotations")}
            return {"metadata": metadata, "spec": predictor}
    return None


def _set_faults(objects: Sequence[Object]) -> Iterator[str]:
    seen: set[str] = set()
    for one in objects:
        if _named(one) in seen:
            yield f"{_named(one)} is there twice"
        seen.add(_named(one))
    namespaces = {one["metadata"].get("namespace") for one in objects}
    if len(namespaces) != 1 or not is_dns_label(*namespaces):
        yield f"the objects are in the namespaces {sorted(map(str, namespaces))}, not in one"
    scaled = [o["spec"]["scaleTargetRef"] for o in objects if "scaleTargetRef" in o.get("spec", {})]
    for target in scaled:
        if f"{target['kind']}/{target['name']}" not in seen:
            yield f"the autoscaler is for {target['kind']}/{target['name']}, which is not there"
    if scaled and any("replicas" in o["spec"] for o in objects if o["kind"] == "Deployment"):
        yield "the Deployment's replicas are the autoscaler's to decide"


def _metadata_faults(one: Object) -> Iterator[str]:
    name = one["metadata"]["name"]
    fits = is_dns_label(name) and name[0].isalpha() if one["kind"] == "Service" else None
    if not (is_subdomain(name) if fits is None else fits):
        yield f"{name!r} cannot be its name"
    yield from label_faults(one["metadata"])


def label_faults(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yield labels and annotations that no object can have."""
    labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
    for key in (*labels, *annotations):
        if not is_label_key(key):
            yield f"{key!r} cannot be the key of a label or an annotation"
    for key, value in labels.items():
        if not is_label_value(value):
            yield f"{value!r} cannot be the value of the label {key}"
    for key, value in annotations.items():
        if not isinstance(value, str):
            yield f"the annotation {key} is no text"
    if sum(len(str(t).encode()) for t in (*annotations, *annotations.values())) > (
        _MOST_ANNOTATION_BYTES
    ):
        yield "the annotations are larger than 256 KiB"


def _deployment_faults(one: Object, template: Object) -> Iterator[str]:
    spec = one["spec"]
    yield from _selector_faults(spec["selector"].get("matchLabels"), template)
    strategy = spec.get("strategy", {})
    rolling = strategy.get("rollingUpdate", {})
    bounds = [rolling.get("maxUnavailable", "25%"), rolling.get("maxSurge", "25%")]
    for bound in bounds:
        number = bound[:-1] if isinstance(bound, str) and bound.endswith("%") else bound
        if not (isinstance(number, int) or str(number).isdecimal()) or isinstance(number, bool):
            yield f"{bound!r} is neither a number nor a share of pods"
        elif isinstance(bound, str) and not bound.endswith("%"):
            yield f"{bound!r} is text; a number of pods is an int"
    if strategy.get("type", "RollingUpdate") != "RollingUpdate":
        yield f"{strategy['type']} takes all pods away before the new ones are ready"
    elif all(str(bound).rstrip("%") == "0" for bound in bounds):
        yield "maxUnavailable and maxSurge are both 0, so no pod could ever be replaced"
    if spec.get("progressDeadlineSeconds", 600) <= spec.get("minReadySeconds", 0):
        yield "progressDeadlineSeconds must be more than minReadySeconds"


def _service_faults(one: Object, template: Object) -> Iterator[str]:
    spec = one["spec"]
    yield from _selector_faults(spec.get("selector"), template)
    yield from port_faults(
        [port.get("targetPort", port["port"]) for port in spec["ports"]], template
    )
    names = [port.get("name") for port in spec["ports"]]
    if len(set(names)) != len(names):
        yield f"its ports have the names {names}"
    for name in names:
        if not is_port_name(name):
            yield f"{name!r} cannot name a port"


def _budget_faults(one: Object, template: Object) -> Iterator[str]:
    spec = one["spec"]
    yield from _selector_faults(spec["selector"].get("matchLabels"), template)
    if "minAvailable" in spec and "maxUnavailable" in spec:
        yield "minAvailable and maxUnavailable exclude each other"
    if str(spec.get("maxUnavailable", 1)).rstrip("%") == "0" or spec.get("minAvailable") == "100%":
        yield "no pod may ever be taken away, so no node could be drained"


def _policy_faults(one: Object, template: Object) -> Iterator[str]:
    spec = one["spec"]
    yield from _selector_faults(spec["podSelector"].get("matchLabels"), template)
    rules = [*spec.get("ingress", ())]
    asked = [port["port"] for rule in rules for port in rule.get("ports", ()) if "port" in port]
    numbered = {port["containerPort"] for port in _ports(template)}
    named = {port.get("name") for port in _ports(template)}
    # KServe's predictor declares the inference port alone; a number need not be declared.
    for port in asked:
        if isinstance(port, str) and port not in named:
            yield f"no container has a port {port!r}"
    if not numbered.union(named).intersection(asked):
        yield "it lets nobody reach a port of the pods"
    if any("ports" not in rule for rule in rules):
        yield "a rule opens all ports, management and metrics too"


def _autoscaler_faults(one: Object, template: Object) -> Iterator[str]:
    least, most = one["spec"].get("minReplicas", 1), one["spec"]["maxReplicas"]
    if not 1 <= least <= most:
        yield f"minReplicas {least} and maxReplicas {most} leave no number"
    for metric in one["spec"].get("metrics", ()):
        asked = metric.get("resource", {}).get("name")
        for container in template["spec"]["containers"]:
            if asked and asked not in container.get("resources", {}).get("requests", {}):
                yield f"a share of {asked} needs a request of {asked}"


def _inference_faults(one: Object, template: Object) -> Iterator[str]:
    predictor = one["spec"]["predictor"]
    if not 1 <= predictor.get("minReplicas", 1) <= predictor.get("maxReplicas", 1):
        yield "minReplicas and maxReplicas leave no number"
    if len(_ports(template)) != 1:
        yield "KServe publishes every port of the predictor"


def _selector_faults(selector: Mapping[str, str] | None, template: Object) -> Iterator[str]:
    labels = template["metadata"].get("labels", {})
    if not selector:
        yield "it selects every pod of the namespace"
        return
    for key, value in selector.items():
        if labels.get(key) != value:
            yield f"it selects {key}={value}, and its pods have {key}={labels.get(key)}"


def port_faults(asked: Sequence[object], template: Object) -> Iterator[str]:
    """Yield ports, by name or number, that no container has."""
    ports = _ports(template)
    known = {port["containerPort"] for port in ports} | {port.get("name") for port in ports}
    for port in asked:
        if port not in known:
            yield f"no container has a port {port!r}"


def _ports(template: Object) -> list[Object]:
    containers = template["spec"]["containers"]
    return [port for container in containers for port in container.get("ports", ())]


def _named(one: Object) -> str:
    return f"{one['kind']}/{one['metadata']['name']}"


_WORKLOADS = ("Deployment", "InferenceService")
_CHECKS: Mapping[str, Callable[[Object, Object], Iterator[str]]] = {
    "Deployment": _deployment_faults,
    "Service": _service_faults,
    "PodDisruptionBudget": _budget_faults,
    "NetworkPolicy": _policy_faults,
    "HorizontalPodAutoscaler": _autoscaler_faults,
    "InferenceService": _inference_faults,
}
