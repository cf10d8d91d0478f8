"""`arcloop deploy run_dir=runs/mnist [deploy=local|kubernetes|kserve] [force=true]`.

Archives a finished run, runs the parity check on the archive, and makes it the live version of its
model store. With Kubernetes, the version becomes live after the cluster serves it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from arcloop.config.composition import to_plain
from arcloop.config.recorded import compose_for_run
from arcloop.display.terminal import print_line
from arcloop.errors import ArtifactError, ConfigError, report_errors
from arcloop.runtime.golden_batch import GoldenBatch
from arcloop.runtime.predictor import ArchiveError, Predictor
from arcloop.runtime.runtimes import runtime_of
from arcloop.runtime.searcher import SearcherError
from arcloop.serving.archive import (
    MODEL_CONFIG,
    ArchiveContents,
    collect,
    read_manifest,
    write_archive,
)
from arcloop.serving.kubernetes.settings import KServeSettings, KubernetesSettings
from arcloop.serving.model_store import ModelStore, Version
from arcloop.serving.servers.config_files import server_configs
from arcloop.serving.servers.members import find_member_fault
from arcloop.serving.settings import DeploySettings

_SETTINGS: Mapping[str, type[DeploySettings]] = {
    "kubernetes": KubernetesSettings,
    "kserve": KServeSettings,
}


@dataclass(frozen=True)
class DeployArguments:
    """The arguments of a serving command.

    Attributes:
        run_dir: The run.
        settings: How it is archived and served.
        force: Deploy a run that did not pass its gate.
    """

    run_dir: Path
    settings: DeploySettings
    force: bool


def parse_arguments(overrides: Sequence[str]) -> DeployArguments:
    """Compose the config from the run's recorded overrides and the given ones.

    Args:
        overrides: Hydra overrides, e.g. ["run_dir=runs/mnist", "deploy.keep=5"].

    Raises:
        ArtifactError: There is no run in the given `run_dir`.
        ConfigError: A key or a value is invalid.
    """
    config = to_plain(compose_for_run(overrides, required=False))
    settings = build_settings(config["deploy"])
    return DeployArguments(Path(config["run_dir"]), settings, config["force"])


def build_settings(node: Mapping[str, Any]) -> DeploySettings:
    """Build the settings from the config's `deploy` node.

    Raises:
        ConfigError: A key is missing or unknown, or a value is invalid.
    """
    kind = _SETTINGS.get(node.get("target", ""), DeploySettings)
    known = [field.name for field in dataclasses.fields(kind)]
    faults = [f"there is no key deploy.{key}" for key in node if key not in known]
    faults += [f"deploy.{name} is required" for name in known if name not in node]
    if faults:
        raise ConfigError("\n".join(faults), remedy=f"known keys: {', '.join(known)}")
    return kind(**node)


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    return report_errors(lambda: _deploy(parse_arguments(argv)))


def _deploy(arguments: DeployArguments) -> int:
    run_dir, settings, force = arguments.run_dir, arguments.settings, arguments.force
    if isinstance(settings, KubernetesSettings) and settings.dry_run:
        contents = collect(run_dir, settings, force=force)
        stored = _find_stored(ModelStore(Path(settings.model_store), settings.name), contents)
        version = stored.version if stored else contents.new_version()
        print_objects({**contents.manifest, "version": version}, settings)
    else:
        live = deploy(run_dir, settings, force=force)
        print_line(f"live: {live.path}, runtime {runtime_of(read_manifest(live.path))}")
    return 0


def deploy(run_dir: Path, settings: DeploySettings, *, force: bool) -> Version:
    """Make a run the live version of its model store.

    Args:
        run_dir: A finished run.
        settings: Name, store, server and limits.
        force: Deploy although the gate did not pass; the archive records this.

    Raises:
        ArtifactError: The run is damaged or did not pass its gate, or its archive fails the parity
            check.
        ResourceError: The store cannot be written.
    """
    with stage(run_dir, settings, force=force) as staged:
        return publish(staged.store, staged.version.version, staged.golden, settings)


@dataclass(frozen=True)
class StagedVersion:
    """A checked version in a locked store that is not live yet.

    Attributes:
        store: The locked store.
        version: The version.
        golden: The golden batch of its archive.
    """

    store: ModelStore
    version: Version
    golden: GoldenBatch


@contextlib.contextmanager
def stage(run_dir: Path, settings: DeploySettings, *, force: bool) -> Iterator[StagedVersion]:
    """Archive a run, check the archive, and lock the store during the block.

    If the store has an archive with the same contents, that version is used.

    Args:
        run_dir: A finished run.
        settings: Name, store, server and limits.
        force: Archive the run although the gate did not pass.

    Raises:
        ArtifactError: The run is damaged or did not pass its gate, or its archive fails the parity
            check.
        ResourceError: The store cannot be written.
    """
    contents = collect(run_dir, settings, force=force)
    store = ModelStore(Path(settings.model_store), settings.name)
    with store.locked() as staging:
        stored = _find_stored(store, contents)
        archive = (
            stored.path if stored else write_archive(contents, staging, contents.new_version())
        )
        golden = unpack_and_check(archive, staging / "unpacked")
        version = store.restore((stored or store.add(archive)).version)
        yield StagedVersion(store, version, golden)


def publish(
    store: ModelStore, version: str, golden: GoldenBatch, settings: DeploySettings
) -> Version:
    """Make a stored version live. With Kubernetes, first deploy it to the cluster.

    Args:
        store: The locked store.
        version: The version to publish.
        golden: The golden batch of its archive, from `unpack_and_check`.
        settings: How it is served.

    Raises:
        ArcloopError: The cluster does not serve the version; the live version is unchanged.
    """
    if isinstance(settings, KubernetesSettings):
        # Imported here, because importing the Kubernetes client is slow.
        from arcloop.serving.kubernetes.deploy import deploy_release
        from arcloop.serving.kubernetes.objects import Release

        archive = store.restore(version).path
        deploy_release(Release.of(read_manifest(archive), settings), golden)
    return activate_version(store, version, settings)


def print_objects(manifest: Mapping[str, Any], settings: KubernetesSettings) -> None:
    """Print the Kubernetes objects that serve the archive with this manifest."""
    from arcloop.serving.kubernetes.objects import Release, manifest_yaml

    print(manifest_yaml(Release.of(manifest, settings)), end="")


def activate_version(store: ModelStore, version: str, settings: DeploySettings) -> Version:
    """Make a stored version live, write the server configs, and prune old versions."""
    live = store.make_live(version)
    for file, text in server_configs(settings, live.path.resolve()).items():
        store.write_config(file, text)
    for moved in store.prune(settings.keep):
        print_line(f"moved to backup: {moved.version}")
    return live


def unpack_and_check(archive: Path, folder: Path) -> GoldenBatch:
    """Unpack an archive, and check that it loads and passes the parity check.

    Returns:
        The golden batch, to check the answers of a server.

    Raises:
        ArtifactError: The archive is damaged or fails the parity check.
    """
    try:
        if fault := find_member_fault(archive):
            raise ArchiveError(fault)
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        settings = yaml.safe_load((folder / MODEL_CONFIG).read_bytes())["handler"]
        return Predictor(folder, settings).golden
    except (zipfile.BadZipFile, ArchiveError, SearcherError) as cause:
        raise ArtifactError(
            str(cause), where=archive, remedy="the store is unchanged; deploy the run again"
        ) from None


def _find_stored(store: ModelStore, contents: ArchiveContents) -> Version | None:
    """Return the newest stored version with these contents."""
    same = [v for v in store.versions() if v.version.endswith(f"-{contents.lineage}")]
    return same[-1] if same else None
