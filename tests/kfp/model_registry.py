"""A fake Model Registry, which accepts only requests of its API v1alpha3.

The facts are in kubeflow/model-registry, api/openapi/model-registry.yaml: the paths with their
methods, the properties of the schemas RegisteredModelCreate, ModelVersionCreate and
ModelArtifactCreate, the pattern of IDs, and MetadataStringValue and MetadataDoubleValue without
other keys.
"""

import contextlib
import json
import re
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

from .loopback import serving

BASE = "/api/model_registry/v1alpha3/"
RESOURCE = {"customProperties", "description", "externalId", "name"}
KNOWN = {
    "registered_models": RESOURCE
    | {"owner", "state", "readme", "maturity", "language", "tasks", "provider", "logo", "license",
       "licenseLink", "libraryName"},
    "model_versions": RESOURCE | {"state", "author", "registeredModelId"},
    "artifacts": RESOURCE
    | {"artifactType", "uri", "state", "modelFormatName", "modelFormatVersion", "storageKey",
       "storagePath", "serviceAccountName", "modelSourceKind", "modelSourceClass",
       "modelSourceGroup", "modelSourceId", "modelSourceName"},
}  # fmt: skip
REQUIRED = {"registered_models": {"name"}, "model_versions": {"name", "registeredModelId"}}
FIND = {"registered_model": "registered_models", "model_version": "model_versions",
        "model_artifact": "artifacts"}  # fmt: skip
VALUES = {"MetadataStringValue": ("string_value", str), "MetadataDoubleValue":
          ("double_value", float)}  # fmt: skip


def check(kind, body):
    assert body.keys() <= KNOWN[kind], body
    assert body.keys() >= REQUIRED.get(kind, set())
    assert body["name"]
    for value in body.get("customProperties", {}).values():
        key, type_ = VALUES[value["metadataType"]]
        assert value.keys() == {"metadataType", key}
        assert isinstance(value[key], type_)


@contextlib.contextmanager
def running_registry():
    """A registry; `made` has its objects, `refuse` a status to answer with."""
    state = SimpleNamespace(made=[], refuse=None, tokens=[], unseen=set())

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def reply(self, status, body):
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            url = urlsplit(self.path)
            query = {key: value for key, (value,) in parse_qs(url.query).items()}
            assert query.keys() <= {"name", "externalId", "parentResourceId"}
            kind = FIND[url.path.removeprefix(BASE)]
            parent = query.get("parentResourceId", "")
            found = [
                o
                for o in state.made
                if (o["kind"], o["name"], o["parent"]) == (kind, query["name"], parent)
            ]
            state.tokens.append(self.headers.get("Authorization"))
            if kind in state.unseen:  # another client creates the object after this request
                state.unseen.remove(kind)
                found = []
            self.reply(*((200, found[0]) if found else (404, {"message": "not found"})))

        def do_POST(self):
            path = self.path.removeprefix(BASE)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            kind = path.rpartition("/")[2]
            check(kind, body)
            parent = body.get("registeredModelId", "")
            if nested := re.fullmatch(r"model_versions/([1-9][0-9]{0,8})/artifacts", path):
                parent = nested[1]
                assert body["artifactType"] == "model-artifact"
            else:
                assert path in ("registered_models", "model_versions")
            if parent:
                assert any(o["id"] == parent for o in state.made)
            if state.refuse:
                return self.reply(state.refuse, {"message": "no"})
            if any(
                (o["kind"], o["name"], o["parent"]) == (kind, body["name"], parent)
                for o in state.made
            ):
                return self.reply(409, {"message": "exists"})
            made = {**body, "id": str(len(state.made) + 1), "kind": kind, "parent": parent}
            state.made.append(made)
            return self.reply(201, made)

    with serving(Handler) as state.url:
        yield state
