"""Low-rank adapters (LoRA) of Hu et al., arXiv 2106.09685, with peft."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from arcloop.config.targets import require_extra
from arcloop.config.value_types import Fraction, NonNegativeInt, PositiveFloat, check_fields
from arcloop.errors import ConfigError, list_some


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Settings of adapters that are trained instead of the weights of a network.

    The output of an adapted layer with weight W is (W + alpha / rank · B·A) x. W is frozen, and B
    starts at 0.

    Attributes:
        rank: Rows of A and columns of B; 0 for no adapters.
        alpha: Scale of the adapters.
        dropout: Probability of dropping an input of A in training, in [0, 1].
        modules: Names of the linear layers and convolutions to adapt, or the ends of their names.

    Raises:
        ConfigError: A value is out of range, or peft is not installed.
    """

    rank: NonNegativeInt
    alpha: PositiveFloat
    dropout: Fraction
    modules: list[str]

    def __post_init__(self) -> None:
        check_fields(self, "backbone.lora")
        if self.rank:
            require_extra("lora", "peft", where=f"backbone.lora.rank={self.rank}")

    def insert(self, model: nn.Module) -> str:
        """Insert the adapters and freeze all other weights of the model.

        Returns:
            A sentence with the number of layers and weights that are trained.

        Raises:
            ConfigError: The model has no layer of these names, or one that cannot be adapted.
        """
        from peft import LoraConfig, inject_adapter_in_model

        names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=float(self.dropout),
            target_modules=list(self.modules),
        )
        try:
            inject_adapter_in_model(config, model)
        except ValueError as cause:
            raise ConfigError(
                f"no adapters can be inserted into layers named {', '.join(self.modules)}",
                where="backbone.lora.modules",
                remedy=f"choose from its linear layers: {list_some(names, 6) or 'none'}",
            ) from cause
        layers = sum(hasattr(module, "get_base_layer") for module in model.modules())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in model.parameters()) - trained
        return (
            f"LoRA of rank {self.rank} in {layers} layers: {trained:,} weights are trained,"
            f" {total:,} are frozen"
        )


def merge_lora(model: nn.Module) -> None:
    """Replace adapted layers by the original ones, with the adapters added to their weights."""
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "get_base_layer"):  # a layer of peft
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
