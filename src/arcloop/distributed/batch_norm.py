"""Batch normalisation over the batches of all processes, on any device.

torch.nn.SyncBatchNorm works only on GPUs and cannot be scripted. Here each layer keeps its class
and parameters; only its `forward` is replaced on the instance, so that the model can be copied,
saved and, after `revert`, scripted.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, nn

from arcloop.distributed.collectives import sum_with_gradient
from arcloop.errors import ConfigError

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class SynchronizedBatchNorm(TorchSyncBatchNorm):
    """Lightning plugin that synchronises the batch norm layers of a model during training.

    It supports torch's BatchNorm1d to BatchNorm3d, and the BatchNormAct2d of timm.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronise all batch norm layers of `model`.

        Raises:
            ConfigError: The model has a batch norm layer that overrides `forward`.
        """
        for module in _batch_norms(model):
            layer: Any = type(module)
            has_activation = layer.__name__ == "BatchNormAct2d"
            if layer.forward is not nn.BatchNorm2d.forward and not has_activation:
                raise ConfigError(
                    f"a batch norm layer of type {layer.__name__} cannot be synchronised",
                    where="trainer.sync_batchnorm=true",
                    remedy="set it to false; each process then normalises by its own batch",
                )
            module.forward = functools.partial(_forward, module, has_activation)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Restore the `forward` of all batch norm layers of `model`."""
        for module in _batch_norms(model):
            vars(module).pop("forward", None)
        return model


def _batch_norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, _BATCH_NORMS)]


def _forward(module: Any, has_activation: bool, input: Tensor) -> Tensor:  # noqa: A002
    """Normalise with the statistics of the global batch in training mode, else the running ones."""
    if not module.training:
        output: Tensor = type(module).forward(module, input)
        return output
    with torch.autocast(input.device.type, enabled=False):
        x = _normalize(module, input.float()).to(input.dtype)
    return module.act(module.drop(x)) if has_activation else x


def _normalize(module: Any, x: Tensor) -> Tensor:
    """Normalise by the statistics of the global batch and update the running statistics."""
    dims = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    # The number of elements is summed, too, because the processes may have batches of different
    # sizes.
    own_count = x.new_tensor([x.numel() / x.shape[1]])
    sums = sum_with_gradient(torch.cat([x.sum(dims), own_count]))
    count = sums[-1].detach()
    mean_C = sums[:-1] / count
    centred = x - mean_C.view(shape)
    # Computing the variance in a second pass is more precise than mean(x²) - mean(x)².
    variance_C = sum_with_gradient(centred.square().sum(dims)) / count
    _update_running_statistics(module, mean_C.detach(), variance_C.detach() * (count / (count - 1)))
    result: Tensor = centred * (variance_C + module.eps).rsqrt().view(shape)
    if module.affine:
        result = result * module.weight.view(shape) + module.bias.view(shape)
    return result


@torch.no_grad()
def _update_running_statistics(module: Any, mean_C: Tensor, unbiased_variance_C: Tensor) -> None:
    if module.running_mean is None:
        return
    module.num_batches_tracked.add_(1)
    momentum = module.momentum
    if momentum is None:  # a cumulative average, as in torch.nn.BatchNorm2d
        momentum = 1 / float(module.num_batches_tracked)
    module.running_mean.lerp_(mean_C, momentum)
    module.running_var.lerp_(unbiased_variance_C, momentum)
