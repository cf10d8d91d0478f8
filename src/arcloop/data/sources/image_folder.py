"""Source: a folder of pictures, one folder a class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arcloop.data.sources.base import SPLITS, Listing, existing_root
from arcloop.data.sources.picture_listing import MANY, SLICE_ROWS
from arcloop.data.sources.picture_source import PictureSource
from arcloop.errors import DataError
from arcloop.runtime.images import EXTENSIONS


@dataclass(kw_only=True)
class ImageFolderSource(PictureSource):
    """Pictures in one of two layouts.

    `root/<class>/*.png` is split here. `root/{train,val,gallery,query}/<class>/*.png` is taken as
    it is split; with `split=disjoint` there may be no `query`. Files with other extensions, and
    names that start with a dot, are passed over.

    Attributes:
        root: The folder.
    """

    root: str

    def fingerprint(self) -> str:
        """Hash relative paths, sizes and times of change: reading every picture takes too long."""
        root, digest = existing_root(self.root), hashlib.sha256()
        for folder in self._class_folders(root):
            digest.update(os.fsencode(folder.relative_to(root)) + b"\n")
            for entry in _pictures(folder):
                digest.update(os.fsencode(entry.name) + f"\0{_version(entry)}\n".encode())
        return digest.hexdigest()

    def likely_tasks(self) -> int:
        root, files = existing_root(self.root), 0
        for folder in self._class_folders(root):
            files += len(_entries(folder))
            if files >= MANY:
                return MANY // SLICE_ROWS
        return 0

    def open(self) -> Listing:
        root = existing_root(self.root)
        folders = self._class_folders(root)
        classes = sorted({folder.name for folder in folders})
        position = {name: label for label, name in enumerate(classes)}
        names = [np.array([os.fsencode(e.name) for e in _pictures(f)], bytes) for f in folders]
        counts = [len(of_folder) for of_folder in names]
        if not any(counts):
            raise DataError(
                f"no images ({', '.join(EXTENSIONS)}) in a folder per class",
                where=root.absolute(),
                remedy="put images at <root>/<class>/<image>, or correct data.root",
            )
        given = None
        if _is_split(root):
            of_picture = np.repeat([folder.parent.name for folder in folders], counts)
            given = {split: np.flatnonzero(of_picture == split) for split in SPLITS}
        return self._listing(
            FolderPictures(root, folders, names),
            np.repeat([position[folder.name] for folder in folders], counts),
            classes,
            given,
            where=root.absolute(),
            layout="<root>/<split>/<class>/<image>",
        )

    def _class_folders(self, root: Path) -> list[Path]:
        """List the folder of every class; in a folder that is split already, of all splits.

        Raises:
            DataError: A split is missing.
        """
        if not _is_split(root):
            return _subfolders(root)
        folders = {split: _subfolders(root / split) for split in SPLITS}
        if missing := [split for split in self.splits_needed() if not folders[split]]:
            raise DataError(
                f"the folder is split already, but class folders are missing in"
                f" {', '.join(missing)}",
                where=root.absolute(),
                remedy=f"provide all of {', '.join(self.splits_needed())}, or put the classes"
                " directly into the root",
            )
        return [folder for of_split in folders.values() for folder in of_split]


class FolderPictures:
    """Pictures by folder; names as bytes, a fraction of a list of str.

    Args:
        root: Folder that the others are in.
        folders: The folders.
        names: Names of the pictures in each.
    """

    def __init__(
        self, root: Path, folders: Sequence[Path], names: Sequence[npt.NDArray[np.bytes_]]
    ) -> None:
        self._names = names
        self._folders = [f"{folder}/" for folder in folders]
        self._prefixes = [os.fsencode(folder.relative_to(root)) + b"/" for folder in folders]
        self._ends = np.cumsum([len(of_folder) for of_folder in names]).tolist()

    def paths(self, numbers: npt.NDArray[np.int64]) -> list[str]:
        return [self._folders[f] + os.fsdecode(name) for f, name in self._located(numbers)]

    def names(self, numbers: npt.NDArray[np.int64]) -> list[bytes]:
        return [self._prefixes[f] + name for f, name in self._located(numbers)]

    def _located(self, numbers: npt.NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        """Yield number of the folder, and name, of each picture."""
        folders = np.searchsorted(self._ends, numbers, side="right")
        for number, f in zip(numbers.tolist(), folders.tolist(), strict=True):
            yield f, self._names[f][number - self._ends[f]]  # counted from the folder's end


def _is_split(root: Path) -> bool:
    """Whether splits, not classes, are on the first level; "train" may be a class of toys."""
    return any(_subfolders(root / split) for split in SPLITS)


def _subfolders(path: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(path) if entry.is_dir()] if path.is_dir() else []


def _pictures(folder: Path) -> list[os.DirEntry[str]]:
    return [
        entry
        for entry in _entries(folder)
        if entry.name.lower().endswith(EXTENSIONS) and not entry.is_dir()
    ]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, by name, but for hidden things."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as cause:
        raise DataError(
            f"cannot be read: {cause.strerror}", where=folder, remedy="make the folder readable"
        ) from None
    return sorted(visible, key=lambda entry: entry.name)


def _version(picture: os.DirEntry[str]) -> str:
    try:
        stat = picture.stat()
    except FileNotFoundError:  # a link that leads nowhere: told of when it is decoded
        return "missing"
    return f"{stat.st_size} {stat.st_mtime_ns}"
