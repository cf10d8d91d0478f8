"""Pictures of unknown things in a folder, on which the open-set threshold can be calibrated."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from arcloop.artifacts.atomic import sha256_file
from arcloop.config.schema import CalibrationSettings
from arcloop.data.sources.image_folder import is_visible
from arcloop.errors import ConfigError, list_some
from arcloop.retrieval.embed import Images, Labels
from arcloop.runtime.images import EXTENSIONS, ImageError, decode
from arcloop.runtime.searcher import Model

UNKNOWN_LABEL = -1
"""Label of an image of no class; no gallery row has it."""


class UnknownImages:
    """The image files in a folder and its subfolders.

    Hidden files and folders, and those of the operating system, are ignored.

    Args:
        settings: `unknown`, the folder, and `max_queries`, the number of files that are drawn.

    Attributes:
        files: The drawn files, in the order of their names.
        unreadable: Name and reason of the files that could not be decoded.

    Raises:
        ConfigError: There is no such folder, or it has too few images for `far`.
    """

    def __init__(self, settings: CalibrationSettings) -> None:
        self._folder, self._far = Path(settings.unknown or ""), settings.far
        if not self._folder.is_dir():
            raise ConfigError(
                "there is no such folder", where=f"calibration.unknown={settings.unknown}",
                remedy="pass a folder with images of unknown things",
            )  # fmt: skip
        found: list[Path] = []
        for root, folders, names in os.walk(self._folder):
            folders[:] = filter(is_visible, folders)
            images = (name for name in names if name.lower().endswith(EXTENSIONS))
            found += [Path(root, name) for name in filter(is_visible, images)]
        found.sort()
        drawn = np.random.default_rng(0).permutation(len(found))[: settings.max_queries]
        self.files = [found[position] for position in np.sort(drawn)]
        self.unreadable: list[str] = []

    def check(self) -> None:
        """Check that enough files can be decoded for the false accept rate to be measurable.

        Raises:
            ConfigError: There are fewer than 1 / `far` images.
        """
        needed, readable, faults = math.ceil(1 / self._far) if self._far else 1, 0, []
        for file in self.files:
            try:
                decode(file, height=32, width=32, channels=1)
                readable += 1
            except ImageError as cause:
                faults.append(f"{file}: {cause}")
            if readable == needed:
                return
        unreadable = f"; not readable: {list_some(faults, 3)}" if faults else ""
        raise ConfigError(
            f"{readable} images of unknown things cannot measure a false accept rate of"
            f" {self._far:g}, which needs at least {needed}{unreadable}",
            where=f"calibration.unknown={self._folder}",
            remedy="add images, or raise calibration.far",
        )

    def sha256(self) -> str:
        """Check, see `check`, and hash the names and the contents of the drawn files."""
        self.check()
        digest = hashlib.sha256()
        for file in self.files:
            name = os.fsencode(file.relative_to(self._folder))
            digest.update(name + b"\0" + sha256_file(file).encode())
        return digest.hexdigest()

    def batches(self, model: Model, batch_size: int) -> Iterator[tuple[Images, Labels]]:
        """Decode the files as a server decodes requests, and skip those that cannot be decoded.

        Yields:
            uint8 images [B, H, W, C] of the model's shape, and labels [B], all `UNKNOWN_LABEL`.
        """

        def read(file: Path) -> Images | str:
            try:
                return model.decode(file)
            except ImageError as cause:
                return f"{file}: {cause}"

        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self.files), batch_size):
                answers = list(pool.map(read, self.files[start : start + batch_size]))
                self.unreadable += [answer for answer in answers if isinstance(answer, str)]
                images = [answer for answer in answers if not isinstance(answer, str)]
                if images:
                    yield np.stack(images), np.full(len(images), UNKNOWN_LABEL, np.int64)
