"""BatchNorm with statistics of a micro batch over all ranks.

``nn.SyncBatchNorm`` does this on GPUs only. Here two differentiable all-reduces do it anywhere, so
that one rank and many train the same head, and all ranks hold the same running statistics: ranks
that validate together apply one model, and any rank's checkpoint is right.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.nn.functional import all_reduce


class BatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with statistics over all ranks, computed in float32."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        per_channel = x.numel() // x.shape[1]
        count = _over_ranks(x.new_tensor(float(per_channel)))
        mean = _over_ranks(x.sum((0, 2, 3))) / count
        deviation = x - mean[:, None, None]
        var = _over_ranks(deviation.square().sum((0, 2, 3))) / count
        self._remember(mean, var * count / (count - 1).clamp(min=1))
        out = deviation * (var + self.eps).rsqrt()[:, None, None]
        return (out * self.weight.float()[:, None, None] + self.bias.float()[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(var.to(self.running_var.dtype), momentum)
        self.num_batches_tracked += 1


def _over_ranks(value: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return all_reduce(value)
    return value
