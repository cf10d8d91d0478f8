"""New images of a source onto a store of it: which store, and what is new."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from arcloop import artifacts
from arcloop.artifacts import Artifact
from arcloop.artifacts.atomic import sha256_json
from arcloop.artifacts.writer import ArtifactWriter
from arcloop.data.sources.base import Listing, Source
from arcloop.data.store.source_files import Difference, Held
from arcloop.data.store.store import CLASSES
from arcloop.errors import ConfigError

KEY_DIGITS = 16


def settings_key(source: Source) -> str:
    """Return what the versions of a store have in common: the same settings, whatever the images.

    The place of the source is not in it, as it is not in the key of a store.
    """
    return sha256_json([type(source).__name__, source.settings()])[:KEY_DIGITS]


@dataclass(frozen=True)
class Base:
    """A store to append to, and what to append.

    Attributes:
        store: The store, verified.
        new: The source's images that it lacks, its labels carried on.
    """

    store: Artifact
    new: Listing

    def first_shard(self, split: str) -> int:
        """Return the number of the first new shard of a split."""
        return len(self.store.info["splits"][split]["shards"])

    def link_shards(self, writer: ArtifactWriter) -> None:
        """Add every shard of the store to a new artifact as a hard link."""
        for name in self.store.files:
            if name != CLASSES:
                writer.link(self.store, name)


def require_appendable(source: Source) -> None:
    """Refuse a source whose rows cannot be told apart.

    Raises:
        ConfigError: It is one.
    """
    if not source.appendable:
        raise ConfigError(
            f"append=true: {type(source).__name__} cannot be appended to; its images are not files"
            " of their own, so which are new cannot be told",
            remedy="leave append=true away: the store is prepared anew when the source changes",
        )


def find_base(source: Source, listing: Listing, stores: Path) -> Base | None:
    """Find the store that new images are to be appended to, among those in a folder.

    It is the one of the same settings that holds most of what the source has now.

    Args:
        source: The source.
        listing: What it has now.
        stores: The folder.

    Returns:
        None if no store holds anything of it.

    Raises:
        DataError: Images that the store holds were removed or changed.
        ArtifactError: The store was damaged.
    """
    key = settings_key(source)
    best = (0, True)
    chosen: tuple[Artifact, Held, Difference] | None = None
    for store in artifacts.list_artifacts(stores, "store"):
        if store.info.get("settings") != key or (held := Held.of(store)) is None:
            continue
        difference = listing.difference(held)
        if (difference.kept, difference.grown) > best:
            best, chosen = (difference.kept, difference.grown), (store, held, difference)
    if chosen is None:
        return None
    store, held, difference = chosen
    difference.require_grown(store.path)
    return Base(artifacts.load(store.path, "store"), listing.beyond(difference.new, held))


def changes_since(source: Source, store: Artifact) -> Difference | None:
    """Compare a source with a store that was made from it; None where that cannot be told.

    Raises:
        DataError: The source is not there.
    """
    held = Held.of(store) if source.appendable else None
    return None if held is None else source.open().difference(held)
