"""The callback that writes best.ckpt."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, except that of equal values the last one is the best.

    When a metric has reached its largest possible value, the embeddings may still improve.
    ModelCheckpoint would keep the checkpoint of the first epoch with this value.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._steps: dict[str, int] = {}

    @property
    def step_of_best(self) -> int | None:
        """Optimizer steps of the best checkpoint; None if there is none."""
        return self._steps.get(self.best_model_path)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"steps": dict(self._steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = dict(state_dict.get("steps", {}))  # an earlier version did not save it
        super().load_state_dict(state_dict)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Return whether `current` is at least as good as the worst of the kept values."""
        if current is not None:
            # The next better float is better than a kept value that is equal to `current`.
            best = float("inf" if self.mode == "max" else "-inf")
            current = torch.nextafter(current, torch.full_like(current, best))
        return super().check_monitor_top_k(trainer, current)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        # ModelCheckpoint selects the first of several kept equal values. They are in saving order.
        for path, value in self.best_k_models.items():
            if value == self.best_model_score:
                self.best_model_path = path
        super()._save_checkpoint(trainer, filepath)
        self._steps[filepath] = trainer.global_step
