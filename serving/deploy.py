"""`python serving/deploy.py run_dir=runs/mnist [deploy=local] [force=true]`.

Archives a finished run, proves that the archive answers as the run does, and makes it the live
version of its model store.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from archive import MODEL_CONFIG, Parts, collect, write_archive
from arcloop.cli import report
from arcloop.errors import ArtifactError
from arcloop.progress import say
from arcloop.searcher import SearcherError
from model_store import ModelStore, Version
from responder import Responder, ResponderError
from server_config import HTTP_SERVER, PROPERTIES, http_server_config, server_properties
from settings import DeploySettings, Request, read_request


def main(argv: Sequence[str]) -> int:
    """Deploy; returns the exit code, as `arcloop` does."""
    return report(lambda: _deploy(read_request(argv)))


def _deploy(request: Request) -> int:
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
    parts = collect(run_dir, settings, force=force)
    store = ModelStore(Path(settings.model_store), settings.name)
    with store.locked() as drafts:
        stored = _stored(store, parts)
        archive = stored.path if stored else write_archive(parts, drafts)
        prove(archive, drafts / "unpacked")
        version = stored or store.add(archive)
        return put_live(store, version.version, settings)


def put_live(store: ModelStore, version: str, settings: DeploySettings) -> Version:
    """Make a stored version live, in this order: loadable, live, in the server's config, pruned."""
    live = store.make_live(version)
    store.write_config(PROPERTIES, server_properties(settings, live.path))
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
