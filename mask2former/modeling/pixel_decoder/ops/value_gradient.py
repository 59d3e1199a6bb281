"""What the GPU kernels of the backward pass share: gradients to which many queries contribute.

Many queries add to one cell of the value, in an order that changes from run to run. Under
`torch.use_deterministic_algorithms` they add integers instead, whose sum does not depend on the order.
"""
# B batch, S value tokens of all levels, T query tokens, n heads, d channels of a head, L levels, K points.

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import computing_dtype

__all__ = ["ValueGradient", "sum_of_shares"]


class ValueGradient(NamedTuple):
    """The sums and what one step of them is worth.

    Attributes:
        sums: (B, S, n, d), zeros at first: float64 where the value is, otherwise float32; int64 with a `scale`.
        scale: steps per unit, one number on the device, in the dtype that `sums` would have without it; or None.
    """

    sums: Tensor
    scale: Tensor | None

    @classmethod
    def start(cls, value: Tensor, grad_output: Tensor, weights: Tensor, *, weights_are_logits: bool) -> ValueGradient:
        """Zeros to add to; grad_output (B, T, n * d), weights or logits (B, T, n, L, K)."""
        dtype = computing_dtype(value)
        if not torch.are_deterministic_algorithms_enabled():
            return cls(torch.zeros(value.shape, dtype=dtype, device=value.device), None)
        scale = _fixed_point_scale(grad_output, weights, weights_are_logits=weights_are_logits, dtype=dtype)
        return cls(torch.zeros(value.shape, dtype=torch.int64, device=value.device), scale)

    def finish(self, dtype: torch.dtype) -> Tensor:
        """The gradient (B, S, n, d)."""
        return (self.sums if self.scale is None else self.sums.to(self.scale.dtype) / self.scale).to(dtype)


def sum_of_shares(shares_BTnL2: Tensor, reference_points: Tensor) -> Tensor:
    """The gradient of reference points (B or 1, T, L, 2) from its shares through every head of every picture."""
    shared_axes = (0, 2) if reference_points.shape[0] == 1 else (2,)
    return shares_BTnL2.sum(dim=shared_axes).view(reference_points.shape).to(reference_points.dtype)


def _fixed_point_scale(grad_output: Tensor, weights: Tensor, *, weights_are_logits: bool, dtype: torch.dtype) -> Tensor:
    """Steps per unit, a power of two, so that no sum of shares of `grad_output` in one cell leaves an int64.

    Sums of integers do not depend on their order. At least 40 bits remain below the largest possible contribution
    at a million points per head, more than float32 has. What is not finite makes the scale NaN, and with it the whole
    gradient of the value. Computed on the device, without waiting for it.
    """
    if not grad_output.numel():
        return torch.ones((), dtype=dtype, device=grad_output.device)
    # A point gives a cell at most the weight of the point; the weights of a query sum to 1 where they are a softmax.
    num_queries, points_per_query = weights.shape[1], weights[0, 0, 0].numel()
    largest = weights.max() if weights_are_logits else weights.abs().max()
    bound = grad_output.abs().max().to(torch.float64) * num_queries
    if not weights_are_logits:
        bound = bound * largest.to(torch.float64) * points_per_query
    # 2**62 / bound, at most 2**120 to stay within float32.
    scale = torch.exp2((62 - torch.frexp(bound).exponent).clamp(max=120).to(torch.float64))
    return torch.where(bound.isfinite() & (largest < torch.inf), scale, torch.nan).to(dtype)
