"""Batch statistics over all processes, so that a batch is normalised alike on one process or many.

torch and timm have this for GPUs only; the class below is the same layer for CPUs.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


def sync_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with every batch norm made one over all processes; names and weights stay."""
    if device.type != "cpu":
        synced: nn.Module = convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return synced
    for name, layer in list(module.named_modules()):
        if isinstance(layer, _BatchNorm):
            module.set_submodule(name, CpuSyncBatchNorm(layer))
    return module


class _Total(torch.autograd.Function):
    """The sum over all processes; the gradient of every process's use of it comes back to each."""

    @staticmethod
    def forward(_: Any, mine: Tensor) -> Tensor:
        total = mine.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


def _total(mine: Tensor) -> Tensor:
    total: Tensor = _Total.apply(mine)
    return total


class CpuSyncBatchNorm(nn.Module):
    """A batch norm whose mean and variance, in training, are those of all processes' parts of the batch."""

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        assert layer.affine
        assert layer.track_running_stats
        assert layer.momentum is not None
        self.eps, self.momentum = layer.eps, layer.momentum
        self.weight, self.bias = layer.weight, layer.bias
        parts = ("drop", "act") if isinstance(layer, BatchNormAct2d) else ()  # timm's has an activation in it
        self.after = nn.Sequential(*(layer.get_submodule(name) for name in parts))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        for name, buffer in layer.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            still: Tensor = self.after(
                nn.functional.batch_norm(
                    values, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
                )
            )
            return still
        given = values.dtype
        values = values.to(torch.promote_types(given, torch.float32))  # no sums over many values in half precision
        axes = [0, *range(2, values.dim())]
        count = _total(values.new_tensor(float(values.numel() // values.shape[1])))
        mean = _total(values.sum(axes)) / count
        shape = [1, -1] + [1] * (values.dim() - 2)
        centred = values - mean.view(shape)
        variance = _total(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        whole: Tensor = self.after((centred * scale.view(shape) + self.bias.view(shape)).to(given))
        return whole
