"""Preparation: writes the store of a source, or appends its new images to an existing store."""

from __future__ import annotations

from pathlib import Path

import joblib

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import file_lock, replaceable_folder
from arcloop.data.sources import Listing, Source, hash_settings, similar_names
from arcloop.data.store.source_files import SourceChanges, StoreContents, record_identities
from arcloop.data.store_writer import write_store
from arcloop.display.terminal import print_line, print_some
from arcloop.errors import ArtifactError, ConfigError, DataError, list_some

_KEY_DIGITS = 16
_MAX_JPEG_SIDE = 65_500  # limit of libjpeg
_SKIPPED_NAMES = 100  # in the manifest


def store_key(source: Source) -> str:
    """Return the key of a source's store. It depends on the settings and content of the source.

    Raises:
        DataError: The source does not exist.
    """
    return hash_settings(source, source.fingerprint())


def prepare(
    source: Source,
    path: Path,
    *,
    append: bool = False,
    full_check: bool = False,
    workers: int | None = None,
) -> Artifact:
    """Write the store of a source, or return the existing one.

    Args:
        source: The source of images and labels.
        path: Folder of the `store`.
        append: Start from the store in the parent folder of `path` that contains most images of the
            source. Its shards are hard-linked, and the new images are written to new shards. If
            there is no such store, the whole source is read.
        full_check: If the store exists, compare the contents of all images with it. By default,
            only images whose size and modification time are the same, but whose inode number or
            ctime differs, are compared.
        workers: Number of processes that decode images; None for one per CPU.

    Returns:
        The verified store.

    Raises:
        ConfigError: The source cannot be appended to, or `path` is a mount point.
        DataError: The source is missing or damaged, or cannot be split according to its settings.
            With `append`: images of the store were removed from the source or changed.
        ArtifactError: Another store is at `path`, or the store is damaged.
        ResourceError: The disk is full or not writable, or a worker process died.
    """
    if append and not source.appendable:
        raise ConfigError(
            f"append=true: {type(source).__name__} cannot be appended to, because its images are"
            " not separate files and new ones cannot be identified",
            remedy="remove append=true: a new store is prepared when the source changes",
        )
    if append and getattr(source, "on_duplicate", None) == "drop":
        raise ConfigError(
            "append=true: data.on_duplicate=drop compares all images of the source, so a store that"
            " was made with it cannot be appended to",
            remedy="remove append=true, or pass data.on_duplicate=error",
        )
    fingerprint = source.fingerprint()
    key = hash_settings(source, fingerprint)
    if existing := _existing_store(path, key, append):
        return _require_same_images(source, existing, full_check)
    with file_lock(replaceable_folder(path)):  # one process of the node writes, the others wait
        if existing := _existing_store(path, key, append):
            return _require_same_images(source, existing, full_check)
        passed_over = source.passed_over()
        print_some("prepare: these files are not read:", passed_over)
        workers = workers or joblib.cpu_count()
        if append:
            base, listing = _plan_append(source, source.open(), path.parent)
        else:
            base, listing = None, source.open_for_store(workers)
        dropped = f"prepare: {len(listing.dropped)} files with the same picture as another:"
        print_some(dropped, listing.dropped)
        print_some("prepare: these classes are left out:", listing.passed_over)
        print_some("prepare: please note:", listing.notices)
        listing.passed_over = [*passed_over, *listing.passed_over]
        print_some("prepare: check the names of these classes:", similar_names(listing.classes))
        write_store(source, fingerprint, listing, base, path, workers)
    store = artifacts.load(path, "store")
    if listing.root is not None and (contents := StoreContents.read(store)):
        record_identities(path, listing.root, contents.files)
    return store


def _require_same_images(source: Source, store: Artifact, full: bool) -> Artifact:
    """Return a store after checking that its images are those of the source.

    Raises:
        DataError: The contents of images were changed; the message names the first ones.
    """
    if not source.appendable or (contents := StoreContents.read(store)) is None:
        return store  # the fingerprint of the source depends on the contents
    listing = source.open()
    changes = listing.compare_with(contents, full=full)
    if changes.changed:
        indent = "\n    "
        raise DataError(
            f"{len(changes.changed)} images are not those that this store was made from, although"
            " their sizes and modification times are the same:"
            f"{indent}{list_some(changes.changed, 10, indent)}",
            where=store.path,
            remedy="run `touch` on these files, so that a new store is prepared from them",
        )
    if changes.compared and listing.root is not None:
        print_line(f"prepare: compared {changes.compared} files with the store: no image changed")
        record_identities(store.path, listing.root, contents.files)
    return store


def changes_since(source: Source, store: Artifact) -> SourceChanges | None:
    """Compare a source with a store that was made from it.

    Returns:
        None if the images of the source are not separate files.

    Raises:
        DataError: The source does not exist.
    """
    contents = StoreContents.read(store) if source.appendable else None
    return None if contents is None else source.open().compare_with(contents)


def _existing_store(path: Path, key: str, append: bool) -> Artifact | None:
    if not artifacts.exists(path):
        return None
    store = artifacts.load(path, "store")
    if store.info["key"] != key:
        remedy = "choose another folder, or delete this one"
        if append:
            remedy = "append=true writes a new store: pass another store_dir in the same folder"
        raise ArtifactError(
            "this store was made from another source, or with other settings",
            where=path,
            remedy=remedy,
        )
    return store


def _plan_append(source: Source, listing: Listing, stores: Path) -> tuple[Artifact | None, Listing]:
    """Find the store with the same settings that contains most images of the source.

    Args:
        source: The source.
        listing: Current contents of the source.
        stores: Folder to search for stores.

    Returns:
        The store and the listing of the images that it lacks; None and `listing` if no store
        contains images of the source.

    Raises:
        DataError: Images of the store were removed from the source or changed.
        ArtifactError: The store is damaged.
    """
    key, best = hash_settings(source), (0, True)
    chosen: tuple[Artifact, StoreContents, SourceChanges] | None = None
    for store in artifacts.list_artifacts(stores, "store"):
        if store.info.get("settings") != key or (contents := StoreContents.read(store)) is None:
            continue
        changes = listing.compare_with(contents)
        rank = (changes.unchanged, changes.only_additions)
        if rank > best:
            best, chosen = rank, (store, contents, changes)
    if chosen is None:
        print_line("append: no store contains images of this source; the whole source is prepared")
        return None, listing
    store, contents, changes = chosen
    changes.require_only_additions(store.path)
    new = listing.select_new(changes.is_new, contents)
    rows = ", ".join(f"{split} {rows}" for split, rows in new.rows.items())
    print_line(f"append: {sum(new.rows.values())} new images ({rows}) to {store.path}")
    return artifacts.load(store.path, "store"), new
