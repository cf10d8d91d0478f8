"""The embedder, which maps images to embeddings of norm 1, and its construction from a config.

Shapes: B batch, C channels, H height, W width, D embedding.
"""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from arcloop.config.value_types import Fraction, PositiveFloat, PositiveInt, checked
from arcloop.errors import ArcloopError, ConfigError


class Embedder(nn.Module):
    """Normalises pixels, then applies backbone, neck and L2 normalisation; exported as model.pt.

    The neck is BN - dropout - FC - BN, as in arXiv 1801.07698. The normalisation constants are
    buffers, so training, gallery and server use the same values.

    Args:
        backbone: Maps [B, C, H, W] to a feature map [B, C', H', W'].
        image_shape: (H, W, C) of the images.
        embedding_dim: D, at least 2, because with D = 1 every embedding is 1 or -1.
        dropout: Probability of dropping an element of the feature map in training, in [0, 1].
        mean: Mean of the pixels, scaled to [0, 1]; one value, or one per channel. None for that of
            the backbone's published weights, or 0.5 if there are none.
        std: Standard deviation of the pixels, scaled to [0, 1]; as `mean`.

    Raises:
        ConfigError: A value is out of range, or the image is too small for the backbone.
    """

    # TorchScript evaluates these annotations and does not support postponed ones, so this module
    # must not import `annotations` from __future__.
    mean: Tensor
    std: Tensor

    @checked("embedder")
    def __init__(
        self,
        backbone: nn.Module,
        *,
        image_shape: tuple[PositiveInt, PositiveInt, PositiveInt],
        embedding_dim: Annotated[int, Field(ge=2)],
        dropout: Fraction,
        mean: list[Fraction] | None,
        std: list[PositiveFloat] | None,
    ) -> None:
        height, width, channels = image_shape
        published = getattr(backbone, "normalisation", lambda _: ([0.5], [0.5]))(channels)
        mean, std = mean or published[0], std or published[1]
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise ConfigError(
                    f"embedder.{name} has {len(values)} values for images of {channels} channels",
                    remedy="give one value, or one per channel",
                )
        super().__init__()
        self.image_shape = (int(height), int(width), int(channels))
        self.embedding_dim = int(embedding_dim)
        for name, values in (("mean", mean), ("std", std)):
            value_1C11 = 255 * torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, value_1C11.repeat(1, channels // len(values), 1, 1))
        self.backbone = backbone
        map_channels, map_height, map_width = _map_shape(backbone, self.image_shape)
        self.neck = nn.Sequential(
            nn.BatchNorm2d(map_channels),
            nn.Dropout(float(dropout)),  # TorchScript does not accept an int
            nn.Flatten(),
            nn.Linear(map_channels * map_height * map_width, embedding_dim),
        )
        self.norm = nn.BatchNorm1d(embedding_dim)
        # As in insightface, the scale of the features is not learned, because a cosine does not
        # depend on it.
        self.norm.weight.requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Embed images.

        Args:
            images_BCHW: uint8, or floating point pixels in 0..255; any memory format.

        Returns:
            float32 [B, D] of norm 1.
        """
        return F.normalize(self.features(images_BCHW))

    def normalisation(self) -> dict[str, list[float]]:
        """Return mean and std of each channel, scaled to [0, 1]."""
        both = {"mean": self.mean, "std": self.std}
        return {
            n: [round(v / 255, 6) for v in value.flatten().tolist()] for n, value in both.items()
        }

    @torch.jit.export
    def embed_with_norm(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Embed images, and return the norms before normalisation; arguments as in `forward`.

        Returns:
            float32 [B, D], the same as `forward`, and the norms, float32 [B].
        """
        features_BD = self.features(images_BCHW)
        return F.normalize(features_BD), torch.linalg.vector_norm(features_BD, dim=1)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Embeddings before L2 normalisation, float32 [B, D]; arguments as in `forward`."""
        return self.project(self.feature_map(images_BCHW))

    def feature_map(self, images_BCHW: Tensor) -> Tensor:
        """Feature map of the backbone, [B, C', H', W']; arguments as in `forward`."""
        x_BCHW = self.normalise(images_BCHW).contiguous(memory_format=torch.channels_last)
        map_BCHW: Tensor = self.backbone(x_BCHW)
        return map_BCHW

    def project(self, map_BCHW: Tensor) -> Tensor:
        """Map a feature map to embeddings before L2 normalisation, float32 [B, D]."""
        # Because of float(), the last batch norm runs in float32 also under autocast.
        features_BD: Tensor = self.norm(self.neck(map_BCHW).float())
        return features_BD

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Normalise pixels in 0..255 to mean 0 and standard deviation 1, with the buffers."""
        return (images_BCHW - self.mean) / self.std


@torch.no_grad()
def _map_shape(backbone: nn.Module, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Run the backbone in evaluation mode to find the shape (C', H', W') of its feature map."""
    height, width, channels = image_shape
    was_training = backbone.training
    try:
        shape = backbone.eval()(torch.zeros(1, channels, height, width)).shape
        found = "x".join(map(str, shape[1:]))
    # torch raises for kernels larger than the map, timm for sizes that its windows do not fit
    except (RuntimeError, AssertionError, ValueError) as cause:
        shape, found = torch.Size(), str(cause) or type(cause).__name__
    finally:
        backbone.train(was_training)
    if len(shape) != 4 or shape.numel() == 0:
        raise ConfigError(
            f"the backbone has no feature map for {height}x{width}x{channels} pixels: {found}",
            where="backbone",
            remedy="use larger images or a backbone with fewer stages",
        )
    return shape[1], shape[2], shape[3]


def make_embedder(
    backbone: Callable[..., nn.Module],
    embedder: Callable[..., Embedder],
    image_shape: tuple[int, int, int],
) -> Embedder:
    """Construct an embedder for images of one shape, with weights from torch's global generator.

    Args:
        backbone: Constructor of the backbone, see `make_backbone`.
        embedder: Constructor of the embedder, which receives the backbone and `image_shape`.
        image_shape: (H, W, C) of the images.

    Raises:
        ConfigError: A constructor rejects its arguments, or the images are too small.
    """
    made: Embedder = construct(
        "embedder", embedder, make_backbone(backbone, image_shape), image_shape=image_shape
    )
    return made


def make_backbone(
    backbone: Callable[..., nn.Module], image_shape: tuple[int, int, int]
) -> nn.Module:
    """Construct a backbone, with `in_channels` and `image_size` if its constructor accepts them.

    Args:
        backbone: Constructor of the backbone.
        image_shape: (H, W, C) of the images.

    Raises:
        ConfigError: The constructor rejects its arguments.
    """
    height, width, channels = image_shape
    derived = {"in_channels": channels, "image_size": (height, width)}
    accepted = inspect.signature(backbone).parameters
    kwargs = {name: value for name, value in derived.items() if name in accepted}
    made: nn.Module = construct("backbone", backbone, **kwargs)
    return made


def construct(name: str, factory: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a constructor from the config and report its errors as errors of the config.

    Args:
        name: Config group of the constructor, for the message.
        factory: The constructor, usually a partial with the values of the config.
        *args: Positional arguments.
        **kwargs: Arguments derived from the images or from other config groups.

    Raises:
        ConfigError: The config sets a derived argument, or the constructor failed.
    """
    if given := sorted(kwargs.keys() & getattr(factory, "keywords", {}).keys()):
        raise ConfigError(
            f"{name}.{given[0]} cannot be set: it is derived from the data and other config groups",
            remedy=f"remove {name}.{given[0]}",
        )
    try:
        return factory(*args, **kwargs)
    except ArcloopError:
        raise
    except Exception as cause:  # a library may raise any exception for an invalid value
        raise ConfigError(
            f"{name}: {str(cause) or type(cause).__name__}",
            where=f"config group {name}",
            remedy="change its values",
        ) from cause
