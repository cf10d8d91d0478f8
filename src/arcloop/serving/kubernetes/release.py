"""A release: one version of a model with the settings, names and labels of its deployment."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcloop.artifacts.atomic import sha256_json
from arcloop.serving.kubernetes.settings import KubernetesSettings
from arcloop.serving.servers.config_files import fastapi_config, torchserve_properties
from arcloop.serving.servers.entrypoint import FASTAPI_CONFIG, TORCHSERVE_CONFIG
from arcloop.serving.store.model_store import archive_file_name

MANAGER = "arcloop"
"""Field manager of server-side apply."""
MODELS = "/models"
"""Mount path of the model store."""
CONFIG = "/etc/arcloop"
"""Mount path of the server's config."""
RELEASE_LABEL = "arcloop/release"
"""Label of a pod: hash of the pod template."""
_HASH_LENGTH = 12


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
    def labels(self) -> dict[str, str]:
        """Labels of every object."""
        return {
            **self.selector,
            "app.kubernetes.io/version": self.version,
            "app.kubernetes.io/managed-by": MANAGER,
        }

    @property
    def annotations(self) -> dict[str, str]:
        """Lineage and gate; the hashes are too long for labels."""
        return {
            "arcloop/lineage": json.dumps(dict(self.lineage), sort_keys=True),
            "arcloop/gate": "forced" if self.forced else "passed",
        }

    @property
    def config(self) -> dict[str, str]:
        """Name -> content of the config file of the server in the pod."""
        address = self.settings.pod_address
        settings = dataclasses.replace(self.settings, host=address)
        archive = Path(MODELS) / archive_file_name(settings.name, self.version)
        if settings.server == "torchserve":
            return {
                TORCHSERVE_CONFIG: torchserve_properties(settings, archive, metrics_host=address)
            }
        return {FASTAPI_CONFIG: fastapi_config(settings, archive, metrics_host=address)}

    @property
    def config_name(self) -> str:
        """Name of the ConfigMap; it contains a hash, so every version of the config has its own."""
        return f"{self.settings.app}-config-{short_hash(self.config)}"


def short_hash(value: object) -> str:
    """Return a hash of a JSON value that is short enough for a name or a label."""
    return sha256_json(value)[:_HASH_LENGTH]
