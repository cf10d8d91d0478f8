"""Source of image files in one folder per class."""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arcloop.artifacts.atomic import SYSTEM_NAMES
from arcloop.data.sources import existing_root
from arcloop.data.sources.picture_table import FileList, Groups, PictureTable
from arcloop.data.sources.pictures import PictureSource, SourceFiles
from arcloop.data.splits import SPLITS
from arcloop.errors import ConfigError, DataError
from arcloop.runtime.images import EXTENSIONS, FORMATS


@dataclass(kw_only=True)
class ImageFolderSource(PictureSource):
    """Source of image files in one of two layouts.

    Images at `root/<class>/*.png` are assigned to the splits at random. The layout
    `root/{train,val,gallery,query}/<class>/*.png` defines the splits; `split=disjoint` does not
    need `query`. Files with other extensions, names that start with a dot, and folders of the
    operating system, e.g. lost+found and __MACOSX, are ignored.

    Attributes:
        root: The folder.
        group: Regular expression that captures the name of the group (e.g. the video or session) of
            an image in `<class>/<file name>`. Images of several classes may share a group. Images
            that it does not match are groups of their own. None: the source has no groups.
    """

    root: str
    group: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group is None:
            return
        try:
            faults = "" if re.compile(self.group).groups == 1 else "needs one pair of parentheses"
        except re.error as cause:
            faults = f"is not a regular expression: {cause}"
        if faults:
            from arcloop.config.composition import quote_override  # imports Hydra

            raise ConfigError(
                f"data.group={self.group!r} {faults}",
                remedy="capture the name of the group in <class>/<file name>, e.g."
                f" {quote_override('data.group', '^(.+)_')}",
            )

    def fingerprint(self) -> str:
        """Hash relative paths, sizes and modification times, because reading all files is slow."""
        root, digest = existing_root(self.root), hashlib.sha256()
        for folder in self._class_folders(root):
            digest.update(os.fsencode(folder.relative_to(root)) + b"\n")
            for entry in _image_files(folder):
                digest.update(os.fsencode(entry.name) + f"\0{_version(entry)}\n".encode())
        return digest.hexdigest()

    def read_files(self) -> SourceFiles:
        root = existing_root(self.root)
        folders = self._class_folders(root)
        files, counts = FileList(root), []
        for folder in folders:
            names = [entry.name for entry in _image_files(folder)]
            counts.append(len(names))
            prefix = folder.relative_to(root).as_posix()
            for name in names:
                files.append(f"{prefix}/{name}")
        if not len(files):
            raise DataError(
                f"no images ({', '.join(EXTENSIONS)}) in a folder per class",
                where=root.absolute(),
                remedy="put images at <root>/<class>/<image>, or correct data.root",
            )
        classes = sorted({_class_name(folder) for folder in folders})
        position_of = {name: position for position, name in enumerate(classes)}
        given = None
        if _has_split_folders(root):
            split_of_file = np.repeat([folder.parent.name for folder in folders], counts)
            given = {split: np.flatnonzero(split_of_file == split) for split in SPLITS}
        labels = np.repeat([position_of[_class_name(folder)] for folder in folders], counts)
        return SourceFiles(
            PictureTable(files, labels, classes, given, self._find_groups(files, root)),
            where=root.absolute(),
            layout="<root>/<split>/<class>/<image>",
        )

    def _find_groups(self, files: FileList, root: Path) -> Groups | None:
        """Find the group of each file with the regular expression `group`.

        Raises:
            DataError: It matches no file.
        """
        if self.group is None:
            return None
        search = re.compile(self.group).search
        groups, group_numbers = array("q"), {"": 0}
        for number in range(len(files)):
            path = files.relative(number).decode("utf-8", "backslashreplace")
            match = search("/".join(path.split("/")[-2:]))
            name = (match and match[1]) or ""
            groups.append(group_numbers.setdefault(name, len(group_numbers)))
        if not any(groups):
            raise DataError(
                f"data.group={self.group!r} matches no image, e.g. not {path!r}",
                where=root.absolute(),
                remedy="correct the regular expression",
            )
        return Groups.from_order_of_names(groups, group_numbers)

    def passed_over(self) -> list[str]:
        root = existing_root(self.root)
        classes = {str(folder) for folder in self._class_folders(root)}
        counts: Counter[str] = Counter()
        examples: dict[str, str] = {}
        walked: set[str] = set()
        for top in [str(root), *sorted(classes)]:  # a class folder may be a link
            for folder, subfolders, names in os.walk(top) if top not in walked else ():
                walked.add(folder)
                subfolders[:] = sorted(filter(is_visible, subfolders))
                for name in sorted(filter(is_visible, names)):
                    extension = os.path.splitext(name)[1].lower()  # noqa: PTH122 - speed
                    if extension not in EXTENSIONS:
                        reason = f"not one of {', '.join(FORMATS)}"
                    elif folder in classes:
                        continue
                    elif any(str(parent) in classes for parent in Path(folder).parents):
                        reason = "in a folder inside the folder of a class"
                    else:
                        reason = "not in the folder of a class"
                    kind = f"{extension or '(no extension)'}: {reason}"
                    counts[kind] += 1
                    examples.setdefault(kind, os.path.join(folder, name))  # noqa: PTH118
        return [f"{n} {kind}, e.g. {examples[kind]}" for kind, n in counts.most_common()]

    def _class_folders(self, root: Path) -> list[Path]:
        """List the folders of all classes, in all splits if the layout defines the splits.

        Raises:
            DataError: A split is missing.
        """
        if not _has_split_folders(root):
            return _subfolders(root)
        folders = {split: _subfolders(root / split) for split in SPLITS}
        if missing := [split for split in self.required_splits() if not folders[split]]:
            raise DataError(
                "the folder contains folders of splits, but class folders are missing in"
                f" {', '.join(missing)}",
                where=root.absolute(),
                remedy=f"provide all of {', '.join(self.required_splits())}, or put the class"
                " folders directly into the root",
            )
        return [folder for of_split in folders.values() for folder in of_split]


def _class_name(folder: Path) -> str:
    r"""Return the name of a folder; bytes that are not UTF-8 become escapes such as \xe9."""
    return os.fsencode(folder.name).decode("utf-8", "backslashreplace")


def _has_split_folders(root: Path) -> bool:
    """Return whether the folders on the first level are splits.

    A folder that is named like a split but has no subfolders is a class, e.g. "train" (railway).
    """
    return any(_subfolders(root / split) for split in SPLITS)


def _subfolders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return [Path(entry.path) for entry in _visible_entries(path) if _is_folder(entry)]


def _image_files(folder: Path) -> list[os.DirEntry[str]]:
    return [
        entry
        for entry in _visible_entries(folder)
        if entry.name.lower().endswith(EXTENSIONS) and not _is_folder(entry)
    ]


def _visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name, without hidden ones and `SYSTEM_NAMES`."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if is_visible(entry.name)]
    except OSError as cause:
        raise DataError(
            f"cannot be read: {cause.strerror}", where=folder, remedy="make the folder readable"
        ) from None
    return sorted(visible, key=lambda entry: entry.name)


def is_visible(name: str) -> bool:
    """Return whether a file or folder is neither hidden nor one of `SYSTEM_NAMES`."""
    return not name.startswith(".") and name not in SYSTEM_NAMES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reported when it is decoded
        return False


def _version(file: os.DirEntry[str]) -> str:
    try:
        stat = file.stat()
    except OSError:  # a link to a missing file or to itself; reported when it is decoded
        return "missing"
    return f"{stat.st_size} {stat.st_mtime_ns}"
