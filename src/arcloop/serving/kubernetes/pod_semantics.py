"""What is wrong within a pod template, or between it and the objects it names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from arcloop.serving.kubernetes.syntax import is_dns_label, is_label_key, is_port_name, quantity

Object = Mapping[str, Any]
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|PRIVATE_KEY|API_KEY", re.IGNORECASE)


def pod_faults(
    template: Object, objects: Sequence[Object], longest_request_s: float
) -> Iterator[str]:
    """Yield what is wrong with a pod template.

    Args:
        template: Metadata and spec.
        objects: Those around it.
        longest_request_s: Which its grace period must outlast.
    """
    spec = template["spec"]
    names = [container["name"] for container in spec["containers"]]
    for name in (*names, *(volume["name"] for volume in spec.get("volumes", ()))):
        if not is_dns_label(name):
            yield f"{name!r} cannot name a container or a volume"
    if len(set(names)) != len(names):
        yield f"its containers have the names {names}"
    yield from _reference_faults(spec, objects)
    yield from _grace_faults(spec, longest_request_s)
    for constraint in spec.get("topologySpreadConstraints", ()):
        wanted = constraint["labelSelector"]["matchLabels"]
        if not wanted.items() <= template["metadata"].get("labels", {}).items():
            yield f"the spread over {constraint['topologyKey']} counts pods of others"
    for container in spec["containers"]:
        for fault in _container_faults(container, spec):
            yield f"{container['name']}: {fault}"


def _reference_faults(spec: Object, objects: Sequence[Object]) -> Iterator[str]:
    """What it names must be among the objects; claims and pull secrets are made by others."""
    made = {(one["kind"], one["metadata"]["name"]) for one in objects}
    account = spec.get("serviceAccountName", "default")
    if ("ServiceAccount", account) not in made:
        yield f"the ServiceAccount {account} is not there"
    volumes = [volume["name"] for volume in spec.get("volumes", ())]
    if len(set(volumes)) != len(volumes):
        yield f"its volumes have the names {volumes}"
    for volume in spec.get("volumes", ()):
        sources = [key for key in volume if key != "name"]
        if len(sources) != 1:
            yield f"the volume {volume['name']} has {len(sources)} sources"
        config = volume.get("configMap", {}).get("name")
        if config is not None and ("ConfigMap", config) not in made:
            yield f"the ConfigMap {config} is not there"
        size = volume.get("emptyDir", {}).get("sizeLimit")
        if size is not None and quantity(size) is None:
            yield f"{size!r} is no quantity"
    mounted = {mount["name"] for c in spec["containers"] for mount in c.get("volumeMounts", ())}
    for name in volumes:
        if name not in mounted:
            yield f"the volume {name} is mounted nowhere"


def _grace_faults(spec: Object, longest_request_s: float) -> Iterator[str]:
    grace = spec.get("terminationGracePeriodSeconds", 30)
    for container in spec["containers"]:
        command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        if not command:
            yield f"{container['name']} ends without a drain: it has no preStop"
            continue
        drain = float(command[1]) if command[0] == "sleep" else 0.0
        if grace <= drain + longest_request_s:
            yield (
                f"it is killed after {grace} s, in the middle of a request: {drain:g} s of drain "
                f"and {longest_request_s:g} s of the longest request"
            )


def _container_faults(container: Object, spec: Object) -> Iterator[str]:
    ports = container.get("ports", ())
    for key in ("name", "containerPort"):
        values = [port.get(key) for port in ports]
        if len(set(values)) != len(values):
            yield f"its ports have the same {key}: {values}"
    for port in ports:
        if not is_port_name(port.get("name")):
            yield f"{port.get('name')!r} cannot name a port"
    known = {port.get(key) for port in ports for key in ("name", "containerPort")}
    for kind in _PROBES:
        yield from _probe_faults(kind, container.get(kind), known)
    yield from _mount_faults(container, {volume["name"] for volume in spec.get("volumes", ())})
    yield from _resource_faults(container.get("resources", {}))
    for variable in container.get("env", ()):
        if "value" in variable and _SECRET.search(variable["name"]):
            yield f"the value of {variable['name']} is in the open; it belongs in a Secret"


def _probe_faults(kind: str, probe: Object | None, known: set[object]) -> Iterator[str]:
    if probe is None:
        yield f"it has no {kind}"
        return
    handlers = [key for key in ("httpGet", "exec", "tcpSocket", "grpc") if key in probe]
    if len(handlers) != 1:
        yield f"the {kind} asks in {len(handlers)} ways"
    for key in ("httpGet", "tcpSocket", "grpc"):
        port = probe.get(key, {}).get("port")
        if key in probe and port not in known:
            yield f"the {kind} asks port {port!r}, which it has not"
    if probe.get("timeoutSeconds", 1) > probe.get("periodSeconds", 10):
        yield f"the {kind} takes longer than its period"


def _mount_faults(container: Object, volumes: set[str]) -> Iterator[str]:
    paths = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
    if len(set(paths)) != len(paths):
        yield f"two volumes are mounted at one of {paths}"
    for mount in container.get("volumeMounts", ()):
        if mount["name"] not in volumes:
            yield f"it mounts the volume {mount['name']}, which is not there"
        if not mount["mountPath"].startswith("/"):
            yield f"{mount['mountPath']!r} is no absolute path"


def _resource_faults(resources: Object) -> Iterator[str]:
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for kind in ("cpu", "memory"):
        if kind not in requests or kind not in limits:
            yield f"{kind} has no request or no limit"
    for bounds in (requests, limits):
        for kind, value in bounds.items():
            if not is_label_key(kind):
                yield f"{kind!r} is no resource"
            if quantity(value) is None:
                yield f"{value!r} is no quantity of {kind}"
    for kind in requests.keys() & limits.keys():
        low, high = quantity(requests[kind]), quantity(limits[kind])
        if low is not None and high is not None and low > high:
            yield f"the request of {kind}, {requests[kind]}, exceeds its limit, {limits[kind]}"
