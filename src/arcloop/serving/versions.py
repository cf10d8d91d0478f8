"""`python serving/versions.py VERB [VERSION] run_dir=runs/mnist`: what a model store holds.

    list                 every version, oldest first, and its state
    rollback [VERSION]   make a version live: by default the one before; out of the backup too
    prune                move all but deploy.keep versions to backup/

The store is that of `deploy.model_store`, named by the run or by `name=mnist`. With
`deploy=kubernetes`, a rollback is rolled out and proven on the cluster as a deploy is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arcloop.display.terminal import say
from arcloop.errors import ArtifactError, ConfigError, report_errors
from arcloop.serving.archive import read_manifest
from arcloop.serving.deploy import print_plan, prove, release
from arcloop.serving.kubernetes.settings import KubernetesSettings
from arcloop.serving.settings import DeploySettings, read_request
from arcloop.serving.store.model_store import ModelStore


def main(argv: Sequence[str]) -> int:
    """Carry out a verb; returns the exit code, as `arcloop` does."""
    return report_errors(lambda: _dispatch(argv))


def _dispatch(argv: Sequence[str]) -> int:
    verbs: Mapping[str, Callable[[_Call], None]] = {
        "list": _list,
        "rollback": _rollback,
        "prune": _prune,
    }
    words = [argument for argument in argv if "=" not in argument]
    if not words or words[0] not in verbs or len(words) > (2 if words[0] == "rollback" else 1):
        raise ConfigError(
            f"cannot read {' '.join(words) or 'no verb'!r}",
            remedy="VERB is list, rollback [VERSION] or prune",
        )
    settings = read_request([argument for argument in argv if "=" in argument]).settings
    store = ModelStore(Path(settings.model_store), settings.name)
    if not store.versions():
        raise ArtifactError(
            f"there is no version of {store.name!r} here",
            where=store.path,
            remedy="check deploy.model_store; a store is made by deploy.py",
        )
    verbs[words[0]](_Call(store, settings, words[1] if len(words) > 1 else None))
    return 0


@dataclass(frozen=True)
class _Call:
    store: ModelStore
    settings: DeploySettings
    version: str | None


def _list(call: _Call) -> None:
    for found in call.store.versions():
        print(f"{found.version}  {found.state}")


def _rollback(call: _Call) -> None:
    settings = call.settings
    if isinstance(settings, KubernetesSettings) and settings.dry_run:
        found = call.store.find(call.version or _previous(call.store))
        print_plan(read_manifest(found.path), settings)
        return
    with call.store.locked() as drafts:
        version = call.version or _previous(call.store)
        unpacked = drafts / "unpacked"
        prove(call.store.find(version).path, unpacked)
        say(f"live: {release(call.store, version, unpacked, settings).path}")


def _prune(call: _Call) -> None:
    with call.store.locked():
        for moved in call.store.prune(call.settings.keep):
            say(f"moved to backup: {moved.version}")


def _previous(store: ModelStore) -> str:
    for found in store.versions():
        if found.state == "previous":
            return found.version
    raise ArtifactError(
        "no version was live before this one",
        where=store.path,
        remedy="name a version; `list` shows them",
    )
