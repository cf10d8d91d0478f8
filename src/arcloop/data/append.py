"""New images of a source onto a store of it: which store, and what is new."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arcloop import artifacts
from arcloop.artifacts import Artifact, Draft
from arcloop.atomic import sha256_json
from arcloop.data.origins import Difference, read_origins
from arcloop.data.source import SPLITS, Listing, Source
from arcloop.data.store import CLASSES, Store
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

    def adopt(self, draft: Draft) -> None:
        """Put every shard of the store into a draft, without copying it."""
        for name in self.store.files:
            if name != CLASSES:
                draft.adopt(self.store, name)


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
    best: tuple[int, bool] = (0, True)
    chosen: tuple[Artifact, Difference] | None = None
    for store in artifacts.among(stores, "store"):
        if store.info.get("settings") != key:
            continue
        difference = _difference(listing, store)
        if difference is not None and (difference.kept, difference.grown) > best:
            best, chosen = (difference.kept, difference.grown), (store, difference)
    if chosen is None:
        return None
    found, difference = chosen
    difference.require_grown(found.path)
    store = artifacts.load(found.path, "store")
    classes: list[str] = json.loads((store.path / CLASSES).read_bytes())
    opened = Store(store)
    held = np.stack(
        [np.bincount(opened.labels(split), minlength=len(classes)) for split in SPLITS], axis=1
    )
    return Base(store, listing.beyond(difference.new, classes, held))


def changes_since(source: Source, store: Artifact) -> Difference | None:
    """Compare a source with a store that was made from it; None where that cannot be told.

    Raises:
        DataError: The source is not there.
    """
    return _difference(source.open(), store) if source.appendable else None


def _difference(listing: Listing, store: Artifact) -> Difference | None:
    origins = read_origins(store)
    return None if origins is None else listing.difference(origins)
