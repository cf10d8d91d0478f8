"""A fake API server: HTTP, objects with resource versions, apply.

It models Kubernetes in part; docs/kubernetes.md describes the limits of these tests.
"""

import copy
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.serving.kubernetes import field_ownership

RESOURCES = {
    "configmaps": ("v1", "ConfigMap"),
    "pods": ("v1", "Pod"),
    "services": ("v1", "Service"),
    "serviceaccounts": ("v1", "ServiceAccount"),
    "deployments": ("apps/v1", "Deployment"),
    "replicasets": ("apps/v1", "ReplicaSet"),
    "horizontalpodautoscalers": ("autoscaling/v2", "HorizontalPodAutoscaler"),
    "networkpolicies": ("networking.k8s.io/v1", "NetworkPolicy"),
    "poddisruptionbudgets": ("policy/v1", "PodDisruptionBudget"),
    "inferenceservices": ("serving.kserve.io/v1beta1", "InferenceService"),
}
PLURALS = {kind: plural for plural, (_, kind) in RESOURCES.items()}


class Refused(Exception):
    def __init__(self, code, reason, message, **details):
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details


class ApiServer:
    """Objects of some namespaces, and a server in front of them.

    Args:
        allowed: (verb, resource) that the user may do.
        namespaces: That there are.

    Attributes:
        objects: (plural, namespace, name) -> object.
        requests: (verb, plural or path) of every request that came.
        lose_requests: How many requests are cut off without an answer.
        absent: Kinds, in the plural, that this cluster does not know.
        after_request: Called when a request was answered, with (verb, plural, dryRun).
        proxied: Answers a request to a Service:
            (service, port, path, body, headers) -> status, body.
    """

    def __init__(self, allowed, namespaces=("team",)):
        self.allowed, self.namespaces = set(allowed), set(namespaces)
        self.objects, self.owners = {}, {}
        self.requests, self.absent = [], set()
        self.lose_requests = 0
        self.proxied = None
        self.after_request = lambda verb, plural, dry_run: None
        self.lock = threading.RLock()
        self.version = 100
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.api = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def address(self):
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def kubeconfig(self, path):
        """Write a kubeconfig that leads here, with a user's token; return its path."""
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "clusters": [{"name": "here", "cluster": {"server": self.address}}],
                    "users": [{"name": "me", "user": {"token": "secret-token"}}],
                    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                }
            )
        )
        return path

    def find(self, kind, name, namespace="team"):
        with self.lock:
            return copy.deepcopy(self.objects.get((PLURALS[kind], namespace, name)))

    def all(self, kind):
        with self.lock:
            found = [o for (plural, *_), o in self.objects.items() if plural == PLURALS[kind]]
            return copy.deepcopy(found)

    def writes(self):
        return [r for r in self.requests if r[0] in ("patch", "delete", "create")]

    def store(self, plural, one):
        """Store an object; if it differs from the stored one, it gets a new resource version."""
        with self.lock:
            key = (plural, one["metadata"]["namespace"], one["metadata"]["name"])
            old = self.objects.get(key)
            if old is not None and _content(old) == _content(one):
                return old
            if old is None or old.get("spec") != one.get("spec"):
                one["metadata"]["generation"] = one["metadata"].get("generation", 0) + 1
            self.version += 1
            one["metadata"]["resourceVersion"] = str(self.version)
            self.objects[key] = one
            return one

    def remove(self, plural, namespace, name):
        with self.lock:
            one = self.objects.pop((plural, namespace, name), None)
            if one is None:
                raise Refused(404, "NotFound", f'{plural} "{name}" not found')
            self.owners.pop((plural, namespace, name), None)
            self.version += 1

    def apply(self, plural, namespace, name, wanted, query):
        with self.lock:
            if namespace not in self.namespaces:
                raise Refused(404, "NotFound", f'namespaces "{namespace}" not found')
            manager = query.get("fieldManager")
            if not manager:
                raise Refused(400, "BadRequest", "fieldManager is required for apply patch")
            key = (plural, namespace, name)
            api, kind = RESOURCES[plural]
            if (wanted["apiVersion"], wanted["kind"]) != (api, kind):
                raise Refused(400, "BadRequest", f"this is the place of {api} {kind}")
            live = self.objects.get(key) or {
                "apiVersion": api,
                "kind": kind,
                "metadata": {"name": name, "namespace": namespace, "uid": str(self.version)},
            }
            try:
                merged, owners = field_ownership.apply(
                    live,
                    self.owners.get(key, {}),
                    manager,
                    wanted,
                    query.get("force") in ("true", "True", "1"),
                )
            except field_ownership.Conflict as conflict:
                raise _conflict(conflict.fields) from None
            self._forbid_immutable(live, merged)
            _default(merged)
            if query.get("dryRun") == "All":
                return merged
            merged["metadata"]["managedFields"] = field_ownership.managed_fields(owners)
            self.owners[key] = owners
            return self.store(plural, merged)

    def _forbid_immutable(self, live, merged):
        for kind, field in (("Deployment", "selector"), ("ConfigMap", "data")):
            if merged["kind"] == kind:
                before = live.get("spec", live).get(field)
                if before not in (None, merged.get("spec", merged).get(field)):
                    raise Refused(422, "Invalid", f"{kind}: {field}: field is immutable")


def _conflict(fields):
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f'conflict with "{manager}" using apps/v1',
            "field": "." + ".".join(k if isinstance(k, str) else f"[{k}]" for k in path),
        }
        for manager, path in fields
    ]
    message = f"Apply failed with {len(causes)} conflicts"
    return Refused(409, "Conflict", message, causes=causes)


def _default(one):
    """Default values of fields, as far as a client depends on them."""
    if one["kind"] == "Deployment":
        one["spec"].setdefault("replicas", 1)
        one["spec"].setdefault("progressDeadlineSeconds", 600)
        one["spec"]["template"]["metadata"].setdefault("creationTimestamp", None)
        one["spec"]["template"]["spec"].setdefault("restartPolicy", "Always")


def _content(one):
    metadata = {k: v for k, v in one["metadata"].items() if k not in field_ownership.SERVER_SIDE}
    return {**one, "metadata": metadata}


def _matches(one, query):
    labels = one["metadata"].get("labels", {})
    wanted = [s.split("=", 1) for s in query.get("labelSelector", "").split(",") if s]
    name = query.get("fieldSelector", "").removeprefix("metadata.name=")
    return all(labels.get(k) == v for k, v in wanted) and name in ("", one["metadata"]["name"])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer("get")

    def do_PATCH(self):
        self._answer("patch")

    def do_DELETE(self):
        self._answer("delete")

    def do_POST(self):
        self._answer("create")

    def _answer(self, verb):
        api = self.server.api
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if api.lose_requests:
            api.lose_requests -= 1
            self.close_connection = True
            return
        words = parts.path.strip("/").split("/")
        if words[0] == "gateway":  # to the Service of the model's name, for everybody
            self._send(*api.proxied(words[-1], 80, "/" + "/".join(words[1:]), body, self.headers))
            return
        place = words.index("namespaces")
        group, (namespace, plural, *name) = words[:place], words[place + 1 :]
        try:
            if "proxy" in name:
                self._proxy(name, body)
                return
            if verb == "get" and not name:
                verb = "list"
            api.requests.append((verb, plural, query.get("dryRun", "")))
            self._allow(verb, plural, group)
            self._send(200, self._object(verb, plural, namespace, name, query, body))
            api.after_request(verb, plural, query.get("dryRun", ""))
        except Refused as refused:
            status = {"kind": "Status", "status": "Failure", "code": refused.code,
                      "reason": refused.reason, "message": refused.message,
                      "details": refused.details}  # fmt: skip
            self._send(refused.code, status)

    def _object(self, verb, plural, namespace, name, query, body):
        api = self.server.api
        if verb == "patch":
            if self.headers["Content-Type"] != "application/apply-patch+yaml":
                raise Refused(415, "UnsupportedMediaType", self.headers["Content-Type"])
            return api.apply(plural, namespace, name[0], json.loads(body), query)
        if verb == "delete":
            api.remove(plural, namespace, name[0])
            return {"kind": "Status", "status": "Success"}
        with api.lock:
            if verb == "list":
                items = [o for (p, n, _), o in api.objects.items()
                         if (p, n) == (plural, namespace) and _matches(o, query)]  # fmt: skip
                version = {"resourceVersion": str(api.version)}
                return copy.deepcopy({"kind": "List", "metadata": version, "items": items})
            found = copy.deepcopy(api.objects.get((plural, namespace, name[0])))
        if found is None:
            raise Refused(404, "NotFound", f'{plural} "{name[0]}" not found')
        return found

    def _allow(self, verb, plural, group):
        if self.headers.get("Authorization") != "Bearer secret-token":
            raise Refused(401, "Unauthorized", "Unauthorized")
        known = plural in RESOURCES and plural not in self.server.api.absent
        if not known or RESOURCES[plural][0] != "/".join(group[1:]):
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        self._authorize(verb, plural)

    def _authorize(self, verb, resource):
        # Apply may create; that takes both rights.
        for needed in ("create", "patch") if verb == "patch" else (verb,):
            if (needed, resource) not in self.server.api.allowed:
                message = f'{resource} is forbidden: User "me" cannot {needed} "{resource}"'
                raise Refused(403, "Forbidden", message)

    def _proxy(self, name, body):
        self._authorize("create", "services/proxy")
        service, _, *path = name
        service, _, port = service.partition(":")
        self.server.api.requests.append(("proxy", service, ""))
        status, answer = self.server.api.proxied(
            service, int(port), "/" + "/".join(path), body, self.headers
        )
        self._send(status, answer)

    def _send(self, status, answer):
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
