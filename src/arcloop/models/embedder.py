"""The embedder: pixels in, points on the unit sphere out. It is what is scripted and served.

Shapes: B batch, C channels, H height, W width, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcloop.config.value_types import Fraction, PositiveFloat, PositiveInt, checked
from arcloop.errors import ConfigError


class Embedder(nn.Module):
    """Normalisation, backbone, neck (BN - dropout - FC - BN, as in arXiv 1801.07698), unit length.

    The constants of normalisation are buffers, so training, gallery and server cannot disagree.

    Args:
        backbone: Maps [B, C, H, W] to a feature map [B, C', H', W'].
        image_shape: (H, W, C) of the images.
        embedding_dim: D.
        dropout: Share of the feature map dropped in training.
        mean: Mean of the pixels in 0..1, one value or one per channel.
        std: Standard deviation of the pixels in 0..1, one value or one per channel.

    Raises:
        ConfigError: A value is out of range, or the backbone leaves nothing of so small an image.
    """

    # Read by TorchScript, which knows no postponed annotations: no __future__ import in this file.
    mean: Tensor
    std: Tensor

    @checked("embedder")
    def __init__(
        self,
        backbone: nn.Module,
        *,
        image_shape: tuple[PositiveInt, PositiveInt, PositiveInt],
        embedding_dim: PositiveInt,
        dropout: Fraction,
        mean: list[Fraction],
        std: list[PositiveFloat],
    ) -> None:
        height, width, channels = image_shape
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
            nn.Dropout(float(dropout)),  # TorchScript takes no int for it
            nn.Flatten(),
            nn.Linear(map_channels * map_height * map_width, embedding_dim),
        )
        self.norm = nn.BatchNorm1d(embedding_dim)
        # The length of a feature says nothing to a cosine: its scale is not learned (insightface).
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

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Embeddings before they are brought to norm 1, float32 [B, D]; arguments as `forward`."""
        return self.project(self.feature_map(images_BCHW))

    def feature_map(self, images_BCHW: Tensor) -> Tensor:
        """What the backbone makes of images, [B, C', H', W']; arguments as `forward`."""
        x_BCHW = self.normalise(images_BCHW).contiguous(memory_format=torch.channels_last)
        map_BCHW: Tensor = self.backbone(x_BCHW)
        return map_BCHW

    def project(self, map_BCHW: Tensor) -> Tensor:
        """Feature map -> embeddings before they are brought to norm 1, float32 [B, D]."""
        # float() ends a surrounding autocast: the last norm and what follows run in float32.
        features_BD: Tensor = self.norm(self.neck(map_BCHW).float())
        return features_BD

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """Bring pixels 0..255 to mean 0 and standard deviation 1, by the buffers."""
        return (images_BCHW - self.mean) / self.std


@torch.no_grad()
def _map_shape(backbone: nn.Module, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Shape (C', H', W') of the backbone's feature map, found by running it in evaluation mode."""
    height, width, channels = image_shape
    was_training = backbone.training
    try:
        shape = backbone.eval()(torch.zeros(1, channels, height, width)).shape
        found = "x".join(map(str, shape[1:]))
    # torch refuses windows larger than what they slide over, timm sizes that its windows do not fit
    except (RuntimeError, AssertionError, ValueError) as cause:
        shape, found = torch.Size(), str(cause) or type(cause).__name__
    finally:
        backbone.train(was_training)
    if len(shape) != 4 or shape.numel() == 0:
        raise ConfigError(
            f"the backbone makes no feature map of {height}x{width}x{channels} pixels: {found}",
            where="backbone",
            remedy="use larger images or a backbone with fewer stages",
        )
    return shape[1], shape[2], shape[3]
