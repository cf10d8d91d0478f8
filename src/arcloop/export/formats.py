"""Files beside model.pt that compute the same for other runtimes, behind one interface.

Each takes what model.pt takes: uint8 [B, C, H, W], any B; and returns float32 [B, D] of norm 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from arcloop.config.value_types import PositiveFloat, check
from arcloop.models import Embedder

Images = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TorchScript:
    """model.pt itself: always made, since everything here reads it.

    Attributes:
        max_abs_diff: Largest difference of any coordinate between eager and scripted embeddings.
    """

    max_abs_diff: PositiveFloat

    def __post_init__(self) -> None:
        check("export.torchscript", max_abs_diff=(self.max_abs_diff, PositiveFloat))


@dataclass(frozen=True, kw_only=True)
class Format(ABC):
    """A format that is made beside model.pt.

    Attributes:
        max_abs_diff: Largest difference of any coordinate from the eager model's embeddings.
    """

    max_abs_diff: PositiveFloat
    file: ClassVar[str]
    """Name of the file."""

    @abstractmethod
    def require(self) -> None:
        """Refuse what can be seen without a model.

        Raises:
            ConfigError: A package is missing, or a value is out of what it supports.
        """

    @abstractmethod
    def write(self, embedder: Embedder, path: Path) -> None:
        """Export an embedder in evaluation mode on the CPU.

        Raises:
            ConfigError: The format cannot express what it computes.
        """

    @abstractmethod
    def embed(self, path: Path, images_NHWC: Images) -> Embeddings:
        """Read the file anew and embed images, float32 [N, D]."""

    @abstractmethod
    def made_with(self) -> Mapping[str, str]:
        """Return the versions of the packages that shape the file."""


def example(embedder: Embedder) -> torch.Tensor:
    """Two images, uint8 [2, C, H, W]: an exporter takes a batch of one for a constant."""
    height, width, channels = embedder.image_shape
    return torch.zeros(2, channels, height, width, dtype=torch.uint8)


def planes(images_NHWC: Images) -> Images:
    """Bring uint8 [N, H, W, C] to a contiguous [N, C, H, W]."""
    return np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2))
