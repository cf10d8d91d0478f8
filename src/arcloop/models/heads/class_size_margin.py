"""Margins that depend on the number of training images of a class.

Ha et al., Google Landmark Recognition 2020 Competition Third Place Solution, arXiv 2010.05350.
Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss (LDAM), arXiv
1906.07413.

Shapes: C classes, M targets.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from arcloop.config.value_types import NonNegativeFloat, checked
from arcloop.errors import ConfigError
from arcloop.models.heads.cosine_classifier import TargetMargin


class ClassSizeMargin(TargetMargin):
    """Base class of heads whose margin can depend on the number of training images of the class.

    The margin of a class with n images is m + a·n^(-λ), so smaller classes have larger margins: the
    dynamic margins of Ha et al. for ArcFace, and with m = 0 and λ = 1/4 those of LDAM for CosFace.
    A class without training images has the margin of a class with one image.

    Args:
        margin: m, the margin of a very large class.
        size_margin: a, added to m for a class with one image; 0 gives all classes the margin m.
        size_power: λ, at least 0; 1/4 in both papers.
        limit: Maximum of m + a.
        **shared: embedding_dim, num_classes and scale, see `CosineClassifier`.

    Raises:
        ConfigError: The margin of a class with one image exceeds `limit`.
    """

    class_margins: Tensor | None

    @checked("head")
    def __init__(
        self,
        *,
        margin: float,
        size_margin: float,
        size_power: NonNegativeFloat,
        limit: float,
        **shared: Any,
    ) -> None:
        if margin + size_margin > limit:
            raise ConfigError(
                f"head.margin={margin} and head.size_margin={size_margin} give a class with one"
                f" image a margin above {limit:.3g}",
                remedy="lower one of them",
            )
        super().__init__(**shared)
        self.margin, self.size_margin = float(margin), float(size_margin)
        self.size_power = float(size_power)
        # [C]. It is computed from the store, so checkpoints do not contain it.
        self.register_buffer("class_margins", None, persistent=False)

    def set_class_sizes(self, sizes_C: Tensor) -> None:
        if self.size_margin > 0:
            by_size_C = sizes_C.clamp(min=1).double() ** -self.size_power
            margins_C = self.margin + self.size_margin * by_size_C
            self.class_margins = margins_C.float().to(sizes_C.device)

    def margin_of(self, labels_M: Tensor) -> float | Tensor:
        """Return the current margins of classes, [M], or the margin that all classes have."""
        if self.size_margin == 0:
            return self.margin_factor * self.margin
        assert self.class_margins is not None
        return self.margin_factor * self.class_margins[labels_M]
