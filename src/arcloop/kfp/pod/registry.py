"""Register a deployed version in Kubeflow's Model Registry, by its REST API v1alpha3.

A model has a version for each archive, and the version has one artifact, the archive. Each of the
three is looked up by its name first, so that a repeated task changes nothing.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arcloop.errors import ResourceError
from arcloop.kfp.pod.lineage import is_property
from arcloop.kfp.pod.steps import STORES

TOKEN = "ARCLOOP_REGISTRY_TOKEN"  # noqa: S105 - the name of a variable
"""Environment variable with a bearer token for the registry, e.g. from `cluster.secrets`."""
_PATH = "/api/model_registry/v1alpha3"
_TIMEOUT_S = 30


def register(
    url: str, root: str, run_id: str, overrides: Sequence[str], evaluation: Path, metadata: Any
) -> str:
    """Register the live version of a model store, and return the ID of its version.

    Args:
        url: Address of the registry.
        root: URI of the folder that contains a relative `deploy.model_store`, e.g. pvc://arcloop;
            empty: a folder of this machine.
        run_id: ID of the run in KFP.
        overrides: Hydra overrides of the groups `name` and `deploy`.
        evaluation: Folder of the evaluation.
        metadata: Its properties in KFP, see `arcloop.kfp.pod.lineage`.

    Raises:
        ResourceError: Another run is live, or the registry refuses or does not answer.
    """
    from arcloop import artifacts
    from arcloop.config.composition import compose_config
    from arcloop.serving.archive import read_manifest
    from arcloop.serving.model_store import ModelStore

    deploy = compose_config(overrides).deploy
    stores = Path(os.environ.get(STORES, ".")).absolute()
    live = ModelStore(stores / deploy.model_store, deploy.name).live()
    parents = read_manifest(live.path)["parents"] if live else {}
    if not live or artifacts.read(evaluation, "evaluation").parents["index"] != parents["index"]:
        raise ResourceError(
            "another run was deployed since, so this one was not registered",
            where=deploy.model_store,
            remedy="nothing, if the other run was deployed on purpose",
        )
    values = {"run": parents["run"], "kfp_run": run_id}
    values |= {key: v for key, v in metadata.items() if is_property(key)}
    registry = _Registry(url)
    model = registry.find_or_create("registered_model", {"name": deploy.name})
    version = registry.find_or_create(
        "model_version",
        {
            "name": live.version,
            "registeredModelId": model,
            "customProperties": {name: _metadata(value) for name, value in values.items()},
        },
        parent=model,
    )
    registry.find_or_create(
        "model_artifact",
        {
            "artifactType": "model-artifact",
            "name": live.path.name,
            "uri": f"{root}/{live.path.relative_to(stores)}" if root else live.path.as_uri(),
            "modelFormatName": "torchserve-archive",
            "modelSourceKind": "pipelines",
            "modelSourceClass": "pipelinerun",
            "modelSourceId": run_id,
        },
        parent=version,
        create=f"model_versions/{version}/artifacts",
    )
    print(f"registered: {deploy.name} {live.version}, version {version} of model {model}")
    return version


def _metadata(value: str | float) -> dict[str, Any]:
    if isinstance(value, str):
        return {"metadataType": "MetadataStringValue", "string_value": value}
    return {"metadataType": "MetadataDoubleValue", "double_value": float(value)}


class _Registry:
    """Client of a registry; converts each error to one message."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/") + _PATH

    def find_or_create(
        self, kind: str, body: Mapping[str, Any], parent: str = "", create: str = ""
    ) -> str:
        """Return the ID of the object of this kind, parent and name, which is made if missing."""
        query = {"name": body["name"], **({"parentResourceId": parent} if parent else {})}
        find = f"{kind}?{urllib.parse.urlencode(query)}"
        found = self._call("GET", find, allowed=404)
        # 409: another task has created it in the meantime.
        found = found or self._call("POST", create or f"{kind}s", body, allowed=409)
        return str((found or self._call("GET", find))["id"])

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, allowed: int = 0
    ) -> Any:
        """Return the JSON of the response, or None for the status `allowed`."""
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get(TOKEN):
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        request = urllib.request.Request(  # noqa: S310 - the config has an http(s) URL
            f"{self._url}/{path}", data, headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
                return json.load(response)
        except urllib.error.HTTPError as cause:
            if cause.code == allowed:
                return None
            text = cause.read().decode(errors="replace").strip()
            fault, remedy = f"answers {cause.code}: {text}", "see the message; the run is deployed"
            if cause.code in (401, 403):
                remedy = f"pass a valid token in {TOKEN} with cluster.secrets"
        except (OSError, ValueError, http.client.HTTPException) as cause:
            fault, remedy = f"does not answer: {cause}", "check cluster.model_registry"
        raise ResourceError(f"the Model Registry {fault}", where=self._url, remedy=remedy)
