"""Batch norm over the batches of all processes, on any device.

Torch's own SyncBatchNorm needs CUDA and cannot be scripted. Here a layer stays what it is, weights
and names included, and only its way forward in training changes.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, nn

from arcloop.distributed.collectives import sum_over_processes
from arcloop.errors import ConfigError


class SyncedBatchNorms(TorchSyncBatchNorm):
    """Lightning's hook around training in several processes: norms are synced, and set back.

    Raises:
        ConfigError: The model has a kind of batch norm that cannot be synced.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001
                kind: Any = type(module)
                module.__class__ = _synced(kind)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            if isinstance(module, _Synced):
                module.__class__ = _plain(type(module))
        return model


class _Synced(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - what 1d and 2d have in common
    """Normalises by mean and variance of the global batch; in evaluation mode as ever."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        with torch.autocast(input.device.type, enabled=False):
            return self._normalised(input.float()).to(input.dtype)

    def _normalised(self, x: Tensor) -> Tensor:
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        own = x.numel() / x.shape[1]
        # The count is summed too: processes may have batches of different sizes.
        sums = _sum(torch.cat([x.sum(dims), x.new_tensor([own])]))
        count, mean_C = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        centred = x - mean_C.view(shape)
        # In a second pass: a difference of squares would lose what the mean does not explain.
        variance_C = _sum(centred.square().sum(dims)) / count
        self._remember(mean_C.detach(), variance_C.detach() * (count / (count - 1)))
        result = centred * (variance_C + self.eps).rsqrt().view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result

    @torch.no_grad()
    def _remember(self, mean_C: Tensor, variance_C: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean_C, share)
        self.running_var.lerp_(variance_C, share)


class _SyncedBatchNorm1d(_Synced, nn.BatchNorm1d):
    pass


class _SyncedBatchNorm2d(_Synced, nn.BatchNorm2d):
    pass


class _SyncedWithActivation(_Synced):
    """Comes before timm's BatchNormAct2d, which is a norm, dropout and an activation in one."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        x = super().forward(input)
        return self.act(self.drop(x)) if self.training else x  # in evaluation it has done so itself


@functools.cache
def _synced(kind: Any) -> Any:
    if issubclass(kind, _Synced):
        return kind
    for synced in (_SyncedBatchNorm1d, _SyncedBatchNorm2d):
        if kind is _plain(synced):
            return synced
    if kind.__name__ == "BatchNormAct2d":
        return type(f"_Synced{kind.__name__}", (_SyncedWithActivation, kind), {})
    raise ConfigError(
        f"a batch norm of the kind {kind.__name__} cannot be synced over processes",
        where="trainer.sync_batchnorm=true",
        remedy="set it to false: each process then norms by its own batch",
    )


def _plain(synced: type) -> type:
    return next(kind for kind in synced.__mro__ if not issubclass(kind, _Synced))


def _sum(tensor: Tensor) -> Tensor:
    summed: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return summed


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        return sum_over_processes(tensor.clone())

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        # What a process put in is in the loss of every one of them.
        return sum_over_processes(grads[0].clone())
