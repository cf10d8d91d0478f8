"""Source: a folder of pictures, one folder a class."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from arcloop.data.image_size import height_and_width
from arcloop.data.picture_listing import ClassFolder, PictureListing
from arcloop.data.shares import Shares
from arcloop.data.source import SPLITS, Listing, Source, existing_root
from arcloop.data.splits import stratify
from arcloop.errors import DataError
from arcloop.images import EXTENSIONS
from arcloop.quantities import Fraction, NonNegativeInt, PositiveInt


@dataclass(kw_only=True)
class ImageFolderSource(Source):
    """Pictures of any size and mode, in one of two layouts.

    `root/<class>/*.png` is split here, seeded and stratified. `root/{train,val,gallery,query}/
    <class>/*.png` is taken as it is split, and `val`, `gallery` and `query` are not used. Files
    with other extensions, and names that start with a dot, are passed over.

    Attributes:
        root: The folder.
        image_size: Height and width, or one number for both, to which pictures are resized.
        channels: 1 (grey) or 3 (RGB), to which they are converted.
        val: Rows (int) or share of all rows (float) that select the checkpoint.
        gallery: Rows or share that fill the index.
        query: Rows or share that judge.
        split_seed: Of the draw.
        on_bad_image: "fail": a picture that cannot be read ends the work; "skip": it is left out,
            and counted.
    """

    appendable = True

    root: str
    image_size: PositiveInt | list[PositiveInt]
    channels: Literal[1, 3]
    val: PositiveInt | Fraction
    gallery: PositiveInt | Fraction
    query: PositiveInt | Fraction
    split_seed: NonNegativeInt
    on_bad_image: Literal["fail", "skip"]

    def __post_init__(self) -> None:
        super().__post_init__()
        height_and_width(self.image_size)

    def fingerprint(self) -> str:
        """Hash relative paths, sizes and times of change: reading every picture takes too long."""
        root, digest = existing_root(self.root), hashlib.sha256()
        for folder in _class_folders(root):
            digest.update(os.fsencode(folder.relative_to(root)) + b"\n")
            for entry in _pictures(folder):
                digest.update(os.fsencode(entry.name) + f"\0{_version(entry)}\n".encode())
        return digest.hexdigest()

    def open(self) -> Listing:
        root = existing_root(self.root)
        paths = _class_folders(root)
        classes = sorted({path.name for path in paths})
        position = {name: label for label, name in enumerate(classes)}
        folders = [
            ClassFolder(
                path,
                position[path.name],
                np.array([os.fsencode(e.name) for e in _pictures(path)], bytes),
            )
            for path in paths
        ]
        if not any(len(folder.names) for folder in folders):
            raise DataError(
                f"no images ({', '.join(EXTENSIONS)}) in a folder per class",
                where=root.absolute(),
                remedy="put images at <root>/<class>/<image>, or correct data.root",
            )
        height, width = height_and_width(self.image_size)
        return PictureListing(
            root=root,
            classes=classes,
            image_shape=(height, width, self.channels),
            folders=folders,
            order=self._order(root, folders, classes),
            shares=None if _is_split(root) else Shares(self._sizes(), self.split_seed),
            skip_bad=self.on_bad_image == "skip",
        )

    def _order(
        self, root: Path, folders: list[ClassFolder], classes: list[str]
    ) -> dict[str, npt.NDArray[np.int64]]:
        """Return, by split, which pictures of all those in `folders` it consists of."""
        counts = [len(folder.names) for folder in folders]
        if _is_split(root):
            of_picture = np.repeat([folder.path.parent.name for folder in folders], counts)
            order = {split: np.flatnonzero(of_picture == split) for split in SPLITS}
            if empty := [split for split, pictures in order.items() if not len(pictures)]:
                raise DataError(
                    f"no images in {', '.join(empty)}",
                    where=root.absolute(),
                    remedy="put images at <root>/<split>/<class>/<image>",
                )
            return order
        labels = np.repeat([folder.label for folder in folders], counts)
        return stratify(labels, classes, self._sizes(), self.split_seed, root.absolute())

    def _sizes(self) -> dict[str, int | float]:
        return {"val": self.val, "gallery": self.gallery, "query": self.query}


def _class_folders(root: Path) -> list[Path]:
    """List the folder of every class; in a folder that is split already, of every class and split.

    Raises:
        DataError: A split is missing.
    """
    if not _is_split(root):
        return _subfolders(root)
    missing = [split for split in SPLITS if not _subfolders(root / split)]
    if missing:
        raise DataError(
            f"the folder is split already, but class folders are missing in {', '.join(missing)}",
            where=root.absolute(),
            remedy=f"provide all of {', '.join(SPLITS)}, or put the classes directly into the root",
        )
    return [folder for split in SPLITS for folder in _subfolders(root / split)]


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
