"""`arcloop versions VERB [VERSION] run_dir=runs/mnist`: manage the versions of a model store.

    list                 print every version, its state and its runtime, oldest first
    rollback [VERSION]   make a version live, by default the previous one; also from backup/
    prune                move all but deploy.keep versions to backup/

The store is `deploy.model_store`, whose default depends on the run or on `name=mnist`. With
`deploy=kubernetes`, a rollback deploys the version to the cluster and checks it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arcloop.display.terminal import print_line
from arcloop.errors import ArtifactError, ConfigError, report_errors
from arcloop.runtime.runtimes import runtime_of
from arcloop.serving.archive import read_manifest
from arcloop.serving.deploy import parse_arguments, print_objects, publish, unpack_and_check
from arcloop.serving.kubernetes.settings import KubernetesSettings
from arcloop.serving.model_store import ModelStore
from arcloop.serving.settings import DeploySettings


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    return report_errors(lambda: _dispatch(argv))


def _dispatch(argv: Sequence[str]) -> int:
    words = [argument for argument in argv if "=" not in argument]
    if words[:1] not in (["list"], ["rollback"], ["prune"]) or len(words) > (
        2 if words[0] == "rollback" else 1
    ):
        raise ConfigError(
            f"invalid arguments: {' '.join(words)!r}" if words else "there is no verb",
            remedy="use list, rollback [VERSION] or prune",
        )
    settings = parse_arguments([argument for argument in argv if "=" in argument]).settings
    store = ModelStore(Path(settings.model_store), settings.name)
    if not store.versions():
        raise ArtifactError(
            f"this model store has no version of {store.name!r}",
            where=store.path,
            remedy="check deploy.model_store; `arcloop deploy` creates a store",
        )
    if words[0] == "list":
        for found in store.versions():
            print(f"{found.version}  {found.state}  {runtime_of(read_manifest(found.path))}")
    elif words[0] == "prune":
        with store.locked():
            for moved in store.prune(settings.keep):
                print_line(f"moved to backup: {moved.version}")
    else:
        _rollback(store, settings, words[1] if len(words) > 1 else None)
    return 0


def _rollback(store: ModelStore, settings: DeploySettings, version: str | None) -> None:
    if isinstance(settings, KubernetesSettings) and settings.dry_run:
        found = store.find(version or _previous(store))
        print_objects(read_manifest(found.path), settings)
        return
    with store.locked() as staging:
        version = version or _previous(store)
        golden = unpack_and_check(store.find(version).path, staging / "unpacked")
        print_line(f"live: {publish(store, version, golden, settings).path}")


def _previous(store: ModelStore) -> str:
    for found in store.versions():
        if found.state == "previous":
            return found.version
    raise ArtifactError(
        "the store has no previous version",
        where=store.path,
        remedy="pass a version; `arcloop versions list` prints all versions",
    )
