"""`python serving/deploy.py run_dir=runs/mnist [deploy=local|kubernetes|kserve] [force=true]`.

Archives a finished run, proves that the archive answers as the run does, and makes it the live
version of its model store; on a cluster, once it is served and proven there.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from arcloop.display.terminal import say
from arcloop.errors import ArtifactError, report_errors
from arcloop.runtime.responder import Responder, ResponderError
from arcloop.runtime.searcher import SearcherError
from arcloop.serving.archive import MODEL_CONFIG, Parts, collect, read_manifest, write_archive
from arcloop.serving.kubernetes.settings import KubernetesSettings
from arcloop.serving.servers.server_config import (
    HTTP_SERVER,
    PROPERTIES,
    http_server_config,
    server_properties,
)
from arcloop.serving.settings import DeploySettings, Request, read_request
from arcloop.serving.store.model_store import ModelStore, Version
from arcloop.serving.store.naming import make_version


def main(argv: Sequence[str]) -> int:
    """Deploy; returns the exit code, as `arcloop` does."""
    return report_errors(lambda: _deploy(read_request(argv)))


def _deploy(request: Request) -> int:
    settings = request.settings
    if isinstance(settings, KubernetesSettings) and settings.dry_run:
        parts = collect(request.run_dir, settings, force=request.force)
        stored = _stored(ModelStore(Path(settings.model_store), settings.name), parts)
        version = stored.version if stored else make_version(datetime.now(UTC), parts.lineage)
        print_plan({**parts.manifest, "version": version}, settings)
        return 0
    live = deploy(request.run_dir, request.settings, force=request.force)
    say(f"live: {live.path}")
    return 0


def deploy(run_dir: Path, settings: DeploySettings, *, force: bool) -> Version:
    """Make a run the live version of its model store.

    A run whose archive is in the store already is not archived again.

    Args:
        run_dir: A finished run.
        settings: Name, store, server and limits.
        force: Deploy although the gate did not pass; recorded in the archive.

    Returns:
        The live version.

    Raises:
        ArtifactError: The run is damaged, refused by its gate, or its archive answers wrongly.
        ResourceError: The store cannot be written.
    """
    with candidate(run_dir, settings, force=force) as proven:
        return release(proven.store, proven.version.version, proven.unpacked, settings)


@dataclass(frozen=True)
class Candidate:
    """A version that answers as its run does, in a store whose lock is held; not live yet.

    Attributes:
        store: Where it is.
        version: In the store, and loadable.
        unpacked: Its archive, unpacked.
    """

    store: ModelStore
    version: Version
    unpacked: Path


@contextlib.contextmanager
def candidate(run_dir: Path, settings: DeploySettings, *, force: bool) -> Iterator[Candidate]:
    """Archive a run, prove the archive, and hold the store until the block ends.

    What is live stays live unless the block changes that.

    Raises:
        ArtifactError: The run is damaged, refused by its gate, or its archive answers wrongly.
        ResourceError: The store cannot be written.
    """
    parts = collect(run_dir, settings, force=force)
    store = ModelStore(Path(settings.model_store), settings.name)
    with store.locked() as drafts:
        stored = _stored(store, parts)
        archive = stored.path if stored else write_archive(parts, drafts)
        prove(archive, drafts / "unpacked")
        version = store.restore((stored or store.add(archive)).version)
        yield Candidate(store, version, drafts / "unpacked")


def release(store: ModelStore, version: str, unpacked: Path, settings: DeploySettings) -> Version:
    """Make a stored version live; where a cluster serves it, once it has proven itself there.

    Args:
        store: Whose lock is held.
        version: Which.
        unpacked: Its archive, unpacked by `prove`.
        settings: How it is served.

    Raises:
        ArcloopError: The cluster does not come to serve it; what was live stays so.
    """
    if isinstance(settings, KubernetesSettings):
        from arcloop.serving.kubernetes.deploy import deploy_release
        from arcloop.serving.kubernetes.release import (
            Release,  # the client of Kubernetes takes a while to load
        )

        archive = store.restore(version).path
        deploy_release(Release.of(read_manifest(archive), settings), unpacked)
    return put_live(store, version, settings)


def print_plan(manifest: Mapping[str, Any], settings: KubernetesSettings) -> None:
    """Print what a cluster would be asked for, to serve the archive with this manifest."""
    from arcloop.serving.kubernetes.deploy import manifest_yaml
    from arcloop.serving.kubernetes.release import Release

    print(manifest_yaml(Release.of(manifest, settings)), end="")


def put_live(store: ModelStore, version: str, settings: DeploySettings) -> Version:
    """Make a stored version live, in this order: loadable, live, in the server's config, pruned."""
    live = store.make_live(version)
    store.write_config(PROPERTIES, server_properties(settings, live.path.resolve()))
    store.write_config(HTTP_SERVER, http_server_config(settings, live.path))
    for moved in store.prune(settings.keep):
        say(f"moved to backup: {moved.version}")
    return live


def prove(archive: Path, scratch: Path) -> None:
    """Unpack an archive and see that it loads and answers as the run it was made from.

    Raises:
        ArtifactError: It does not.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(scratch)
        Responder(scratch, yaml.safe_load((scratch / MODEL_CONFIG).read_bytes())["handler"])
    except (zipfile.BadZipFile, ResponderError, SearcherError) as cause:
        raise ArtifactError(
            str(cause), where=archive, remedy="the store is untouched; export the run again"
        ) from None


def _stored(store: ModelStore, parts: Parts) -> Version | None:
    """Return the newest version made of these very parts."""
    made = [v for v in store.versions() if v.version.endswith(f"-{parts.lineage}")]
    return made[-1] if made else None
