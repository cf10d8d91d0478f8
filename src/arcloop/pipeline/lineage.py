"""`arcloop lineage PATH`: trace a model, index, run or archive to its images, and verify it."""

from __future__ import annotations

import argparse
import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

from arcloop import artifacts
from arcloop.artifacts import MANIFEST, Artifact
from arcloop.artifacts.atomic import sha256_file
from arcloop.config.composition import build_node
from arcloop.config.schema import CalibrationSettings
from arcloop.data import changes_since
from arcloop.display.terminal import result_console
from arcloop.errors import ArcloopError, ArtifactError, ConfigError, DataError
from arcloop.pipeline.chains import find_parent_folder, find_store
from arcloop.pipeline.links import Link, make_tree
from arcloop.pipeline.summary import OTHER_DATA

_MAX_NAMED_FILES = 3
_MAX_LINE = 100_000  # characters; rich would cut off longer lines, and the terminal wraps them


def lineage(arguments: Sequence[str]) -> int:
    """Print and verify the lineage of a path; returns 1 if a link is broken."""
    parser = argparse.ArgumentParser("arcloop lineage", description=__doc__)
    parser.add_argument(
        "path", metavar="PATH", help="a run, an artifact, one of its files, or a .mar"
    )
    parser.add_argument("--run", metavar="RUN_DIR", help="the run that an archive was made from")
    options = parser.parse_args(arguments)
    run_dir = artifacts.without_link(Path(options.run)) if options.run else None
    chain = trace(artifacts.without_link(Path(options.path)), run_dir)
    console = result_console(_MAX_LINE)
    console.print(make_tree(chain, set()))
    faults = list(chain.faults())
    for fault in faults:
        console.print(f"broken: {fault}")
    if not faults:
        console.print("all links verified")
    return 1 if faults else 0


def trace(path: Path, run_dir: Path | None = None) -> Link:
    """Trace a path to everything it was made from, and verify every hash.

    A damaged artifact is returned as a link with a fault and raises no error.

    Args:
        path: Folder of an artifact, a file in one, or an archive.
        run_dir: Run that an archive was made from; if None, the trace ends at the archive.

    Raises:
        ArtifactError: `path` is not an artifact, a file in one, or an archive.
    """
    if path.suffix == ".mar":
        return _archive(path, run_dir)
    folder = path if path.is_dir() else path.parent
    while not artifacts.exists(folder):
        if folder == folder.parent or not path.exists():
            raise ArtifactError(
                "this is neither an artifact nor a file in an artifact",
                where=path,
                remedy="pass a run directory, a file in it, or an archive",
            )
        folder = folder.parent
    name = None if path.is_dir() else path.relative_to(folder).as_posix()
    link, artifact = _verified(folder)
    if artifact is None or name is None or name == MANIFEST:
        return link
    entry = artifact.files.get(name)
    fault = None if entry else "the manifest of its artifact does not list this file"
    return Link(str(path), str(entry["sha256"]) if entry else None, fault=fault, parents=[link])


def _verified(folder: Path, kind: str | None = None) -> tuple[Link, Artifact | None]:
    """Verify an artifact, of any kind if `kind` is None, and its ancestors."""
    what = f"{kind or 'artifact'} {folder}"
    try:
        artifact = artifacts.load(folder, kind, trust=False)
        what = f"{artifact.kind} {folder}"
        return Link(what, artifact.sha256, _facts(artifact), parents=_parents(artifact)), artifact
    except ArcloopError as cause:
        return Link(what, fault=str(cause).replace("\n", ";")), None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        reason = f"no key {cause}" if isinstance(cause, KeyError) else str(cause)
        return Link(what, fault=f"{folder / MANIFEST} is damaged: {reason}"), None


def _parents(artifact: Artifact) -> list[Link]:
    if artifact.kind == "store":
        parents = [_source(artifact)]
        return parents + ([_appended_to(artifact)] if "store" in artifact.parents else [])
    if artifact.kind == "run":
        parents = [_store(artifact)]
        return parents + ([_weights(artifact)] if "backbone_weights" in artifact.parents else [])
    return [
        (_outside_files if role in ("unknown", "pairs") else _parent)(role, sha256, artifact)
        for role, sha256 in sorted(artifact.parents.items())
    ]


def _parent(role: str, sha256: str, child: Artifact) -> Link:
    if role == "versus":  # the model that was compared; it is no ancestor, and may be removed
        return Link(f"compared with {child.config['evaluate']['gate']['versus']}", sha256)
    if role == "store" and child.path.parents[1].name == OTHER_DATA:
        return _other_store(child.path.parent / "evaluation", sha256)
    run_dir = find_parent_folder(role, child.path.parent)
    if role == "store" and not artifacts.exists(run_dir):
        return Link(f"store {sha256[:12]}...", sha256)  # the parent of a validation
    if role in ("model", "store"):
        run, artifact = _verified(run_dir, "run")
        if artifact is None:
            return run
        known = artifact.parents["store"] if role == "store" else artifact.file_sha256("model.pt")
        link = Link(f"{role} of {run_dir}", sha256, parents=[run] if role == "model" else [])
    else:
        link, artifact = _verified(run_dir / role, role)
        if artifact is None:
            return link
        known = artifact.sha256
    if known != sha256:
        link.fault = f"it was made from a different {role} ({sha256[:12]}...)"
    return link


def _other_store(evaluation: Path, sha256: str) -> Link:
    """Trace the store of data that a run was evaluated on, but not trained on."""
    try:
        run_dir = find_parent_folder("run", evaluation.parent)
        store = find_store(run_dir, artifacts.read(evaluation, "evaluation"))
    except ArcloopError as cause:
        return Link(f"store {sha256[:12]}...", fault=cause.what)
    link, artifact = _verified(store, "store")
    if artifact is not None and artifact.sha256 != sha256:
        link.fault = f"it was made from a different store ({sha256[:12]}...)"
    return link


def _store(run: Artifact) -> Link:
    try:
        link, artifact = _verified(find_store(run.path), "store")
    except ArcloopError as cause:
        return Link(f"store {run.parents['store'][:12]}...", fault=cause.what)
    if artifact is not None and "data" in run.config:
        _compare_source(link.parents[0], run, artifact)
    return link


def _weights(run: Artifact) -> Link:
    name, sha256 = run.config["backbone_weights"]["file"], run.parents["backbone_weights"]
    if name is None:  # the cache of the Hugging Face Hub may be on another machine
        return Link(f"published weights of {run.config['backbone']['model']}", sha256)
    file = Path(name)
    link = Link(f"weights {file}", sha256)
    if not file.is_file():
        link.fault = "the file was moved or removed"
    elif sha256_file(file) != link.sha256:
        link.fault = "the file was changed after the backbone was initialised from it"
    return link


def _outside_files(role: str, sha256: str, artifact: Artifact) -> Link:
    """Trace the images of unknown things of an index, or the lists of pairs of an evaluation."""
    from arcloop.evaluation.pairs import hash_pair_lists
    from arcloop.retrieval.unknown_images import UnknownImages

    if role == "unknown":
        settings = CalibrationSettings(**artifact.config["calibration"])
        link = Link(f"unknown images {settings.unknown}", sha256)
    else:
        files = artifact.config["evaluate"]["pairs"]
        link = Link(f"pairs of {', '.join(files)}", sha256)
    try:
        is_list = role == "pairs"
        now = hash_pair_lists(files) if is_list else UnknownImages(settings).sha256()
        if now != sha256:
            made = "the model was evaluated" if is_list else "the threshold was calibrated"
            link.fault = f"the images were changed after {made} on them"
    except (ConfigError, DataError) as cause:
        link.fault = cause.what
    return link


def _appended_to(store: Artifact) -> Link:
    """Trace a store to the older version that images were appended to.

    The older version may be missing: its shards are part of this store and were verified with it.
    """
    sha256 = store.parents["store"]
    found = artifacts.find_by_hash(store.path.parent, "store", sha256)
    if found is None:
        return Link(f"store {sha256[:12]}... (images were appended to it; it was moved or removed)")
    return _verified(found, "store")[0]


def _source(store: Artifact) -> Link:
    root = store.config.get("root")
    return Link(f"source {store.config['name']}" + (f" in {root}" if root else ""))


def _compare_source(link: Link, run: Artifact, store: Artifact) -> None:
    """Read the source with the settings of the run and compare its fingerprint."""
    try:
        source = build_node(run.config["data"])
        link.sha256 = source.fingerprint()
        link.facts = source.files()
        if link.sha256 == store.info["source"]:
            return
        since = changes_since(source, store)
    except (ConfigError, DataError, OSError) as cause:
        link.fault = f"it cannot be read: {cause}".replace("\n", ";")
        return
    if since is not None and since.only_additions:
        link.facts = {"new since": f"{since.is_new.sum()} images"}
        return
    changes = {"removed": since.removed, "changed": since.changed} if since else {}
    named = [
        f"{len(paths)} {what}: {', '.join(paths[:_MAX_NAMED_FILES])}"
        for what, paths in changes.items()
        if paths
    ]
    link.fault = "; ".join(["the source was changed after the store was prepared", *named])


def _facts(artifact: Artifact) -> dict[str, str]:
    code = artifact.code
    facts = {"git": str(code["git"]), "torch": code["packages"].get("torch", "?")}
    if "threads" in artifact.config:
        facts["threads"] = str(artifact.config["threads"])
    if artifact.info.get("overrides"):
        facts["overrides"] = " ".join(artifact.info["overrides"])
    for part in artifact.info.get("parts", ())[:-1]:
        facts[f"from step {part['step']}"] = " ".join(part["overrides"])
    return facts


def _archive(path: Path, run_dir: Path | None) -> Link:
    try:
        with zipfile.ZipFile(path) as packed:
            manifest = json.loads(packed.read(MANIFEST))
            changed = [
                name
                for name, entry in manifest["files"].items()
                if hashlib.sha256(packed.read(name)).hexdigest() != entry["sha256"]
            ]
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as cause:
        raise ArtifactError(
            f"this is not an archive of a model: {cause}", where=path, remedy="deploy the run again"
        ) from None
    facts = {"version": manifest["version"], "gate passed": str(manifest["gate"]["passed"])}
    link = Link(f"archive {path}", sha256_file(path), facts)
    if changed:
        link.fault = f"{', '.join(changed)} changed after the archive was written"
    if run_dir is None:
        parents = sorted(manifest["parents"].items())
        link.parents = [Link(f"{role} (see --run)", sha256) for role, sha256 in parents]
    else:
        for role in ("run", "index"):
            found, artifact = _verified(run_dir if role == "run" else run_dir / role, role)
            if artifact is not None and artifact.sha256 != manifest["parents"][role]:
                found.fault = f"the archive was made from a different {role}"
            link.parents.append(found)
    return link
