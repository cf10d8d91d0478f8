"""Appending the new images of a source to an existing store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import sha256_json
from arcloop.artifacts.writer import ArtifactWriter
from arcloop.data.sources.base import Listing, Source
from arcloop.data.store.source_files import SourceChanges, StoreContents
from arcloop.data.store.store import CLASSES
from arcloop.errors import ConfigError

KEY_DIGITS = 16


def settings_key(source: Source) -> str:
    """Return a hash of the settings of a store, without the images and their location."""
    return sha256_json([type(source).__name__, source.settings()])[:KEY_DIGITS]


@dataclass(frozen=True)
class AppendPlan:
    """A store to append to, and the images to append.

    Attributes:
        store: The verified store.
        new: Listing of the images that the store lacks. Stored classes keep their labels; new
            classes get the labels that follow.
    """

    store: Artifact
    new: Listing

    def first_shard(self, split: str) -> int:
        """Return the number of the first new shard of a split."""
        return len(self.store.info["splits"][split]["shards"])

    def link_shards(self, writer: ArtifactWriter) -> None:
        """Add all shards of the store to a new artifact as hard links."""
        for name in self.store.files:
            if name != CLASSES:
                writer.link(self.store, name)


def require_appendable(source: Source) -> None:
    """Check that each image of a source is a separate file.

    Raises:
        ConfigError: The source cannot distinguish new images from stored ones.
    """
    if not source.appendable:
        raise ConfigError(
            f"append=true: {type(source).__name__} cannot be appended to, because its images are"
            " not separate files and new ones cannot be identified",
            remedy="remove append=true: a new store is prepared when the source changes",
        )


def plan_append(source: Source, listing: Listing, stores: Path) -> AppendPlan | None:
    """Find the store with the same settings that contains most images of the source.

    Args:
        source: The source.
        listing: Current contents of the source.
        stores: Folder to search for stores.

    Returns:
        None if no store contains images of the source.

    Raises:
        DataError: Images of the store were removed from the source or changed.
        ArtifactError: The store is damaged.
    """
    key = settings_key(source)
    best = (0, True)
    chosen: tuple[Artifact, StoreContents, SourceChanges] | None = None
    for store in artifacts.list_artifacts(stores, "store"):
        if store.info.get("settings") != key or (contents := StoreContents.read(store)) is None:
            continue
        changes = listing.compare_with(contents)
        rank = (changes.unchanged, changes.only_additions)
        if rank > best:
            best, chosen = rank, (store, contents, changes)
    if chosen is None:
        return None
    store, contents, changes = chosen
    changes.require_only_additions(store.path)
    new = listing.select_new(changes.is_new, contents)
    return AppendPlan(artifacts.load(store.path, "store"), new)


def changes_since(source: Source, store: Artifact) -> SourceChanges | None:
    """Compare a source with a store that was made from it.

    Returns:
        None if the images of the source are not separate files.

    Raises:
        DataError: The source does not exist.
    """
    contents = StoreContents.read(store) if source.appendable else None
    return None if contents is None else source.open().compare_with(contents)
