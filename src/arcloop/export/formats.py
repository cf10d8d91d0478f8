"""Export formats: model.pt, and additional files that compute the same embeddings.

Every format takes uint8 [B, C, H, W] with any B and returns float32 [B, D] of norm 1, like
model.pt.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from arcloop.config.value_types import PositiveFloat, check_fields
from arcloop.errors import ConfigError
from arcloop.models import Embedder

Images = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TorchScript:
    """model.pt, which is always exported, because all other steps use it.

    Attributes:
        max_abs_diff: Largest allowed difference between eager and scripted embeddings, in any
            coordinate.
    """

    max_abs_diff: PositiveFloat

    def __post_init__(self) -> None:
        check_fields(self, "export.torchscript")


@dataclass(frozen=True, kw_only=True)
class Format(ABC):
    """A format that is exported in addition to model.pt.

    Attributes:
        max_abs_diff: Largest allowed difference from the eager model's embeddings, in any
            coordinate.
    """

    max_abs_diff: PositiveFloat
    file: ClassVar[str]
    """Name of the exported file."""
    packages: ClassVar[tuple[str, ...]]
    """Distributions that determine the content of the file."""

    def check_available(self) -> None:
        """Check everything that can be checked without a model.

        Raises:
            ConfigError: A package is missing, or a package does not support a setting.
        """
        return

    @abstractmethod
    def write(self, embedder: Embedder, path: Path) -> None:
        """Export an embedder in evaluation mode on the CPU.

        Raises:
            ConfigError: The format cannot express the computation.
        """

    @abstractmethod
    def embed(self, path: Path, images_NHWC: Images) -> Embeddings:
        """Load an exported file and embed images; returns float32 [N, D]."""

    def package_versions(self) -> dict[str, str]:
        """Return the versions of the packages that determine the file."""
        return {name: importlib.metadata.version(name) for name in self.packages}


Exports = Mapping[str, TorchScript | Format | None]
"""The config group `export`: name -> format; None entries are skipped."""


def extra_formats(exports: Exports, *, at_least_one: bool = False) -> dict[str, Format]:
    """Return the formats that are exported in addition to model.pt.

    Args:
        exports: The config group `export`.
        at_least_one: Raise an error if there is no additional format.

    Raises:
        ConfigError: A package is missing, a setting is not supported, or there is no format.
    """
    formats = {name: f for name, f in exports.items() if isinstance(f, Format)}
    if at_least_one and not formats:
        raise ConfigError(
            "there is nothing to export: the run already contains model.pt",
            where="export",
            remedy="choose a format, e.g. export=onnx or export=torch_export",
        )
    for chosen in formats.values():
        chosen.check_available()
    return formats


def example_images(embedder: Embedder) -> torch.Tensor:
    """Return two black images, uint8 [2, C, H, W]; exporters make a batch size of 1 constant."""
    height, width, channels = embedder.image_shape
    return torch.zeros(2, channels, height, width, dtype=torch.uint8)


def to_channels_first(images_NHWC: Images) -> Images:
    """Convert uint8 [N, H, W, C] to contiguous [N, C, H, W]."""
    return np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2))


@contextlib.contextmanager
def ignore_warnings(messages: Sequence[str]) -> Iterator[None]:
    """Ignore warnings whose text starts with one of these regular expressions."""
    with warnings.catch_warnings():
        for message in messages:
            warnings.filterwarnings("ignore", message)
        yield
