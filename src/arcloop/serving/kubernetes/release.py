"""What is released: one version of a model, under settings, with names and labels of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcloop.artifacts.atomic import sha256_json
from arcloop.serving.kubernetes.settings import KubernetesSettings
from arcloop.serving.servers.server_config import (
    HTTP_SERVER,
    PROPERTIES,
    http_server_config,
    server_properties,
)
from arcloop.serving.store.naming import file_name

MANAGER = "arcloop"
MODELS = "/models"
CONFIG = "/etc/arcloop"
RELEASE = "arcloop/release"
_HASH_LENGTH = 12


@dataclass(frozen=True)
class Release:
    """A version as a cluster is to serve it.

    Attributes:
        version: Of the archive.
        lineage: What it was made from: role -> hash.
        forced: Whether it is deployed although its gate did not pass.
        settings: How it is served.
    """

    version: str
    lineage: Mapping[str, str]
    forced: bool
    settings: KubernetesSettings

    @classmethod
    def of(cls, manifest: Mapping[str, Any], settings: KubernetesSettings) -> Release:
        """Return the release of an archive with this manifest."""
        return cls(manifest["version"], manifest["parents"], manifest["forced"], settings)

    @property
    def selector(self) -> dict[str, str]:
        """Labels of all pods of the app, of whatever version."""
        return {
            "app.kubernetes.io/name": "arcloop-server",
            "app.kubernetes.io/instance": self.settings.app,
        }

    @property
    def labels(self) -> dict[str, str]:
        """Labels of every object."""
        return {
            **self.selector,
            "app.kubernetes.io/version": self.version,
            "app.kubernetes.io/managed-by": MANAGER,
        }

    @property
    def annotations(self) -> dict[str, str]:
        """Where the model comes from; hashes are too long for labels."""
        return {
            "arcloop/lineage": json.dumps(dict(self.lineage), sort_keys=True),
            "arcloop/gate": "forced" if self.forced else "passed",
        }

    @property
    def config(self) -> dict[str, str]:
        """The file that the server in the pod reads: name -> content."""
        address = self.settings.pod_address
        settings = dataclasses.replace(self.settings, host=address)
        archive = Path(MODELS) / file_name(settings.name, self.version)
        if settings.server == "torchserve":
            return {PROPERTIES: server_properties(settings, archive, metrics_host=address)}
        return {HTTP_SERVER: http_server_config(settings, archive, metrics_host=address)}

    @property
    def config_name(self) -> str:
        """Name of the ConfigMap: another for another content, so that a rollback finds its own."""
        return f"{self.settings.app}-config-{short_hash(self.config)}"


def short_hash(value: object) -> str:
    """Return a hash of a JSON value that fits into a name or a label."""
    return sha256_json(value)[:_HASH_LENGTH]
