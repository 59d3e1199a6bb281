"""Multi-scale deformable attention on a GPU by the compiled library: calls its operators.

Arguments as in `Backend`, in any memory layout. Arithmetic runs in float64 where the value is float64, otherwise in
float32.
"""
# B batch, S value tokens of all levels, T query tokens, n heads, d channels of a head, L levels, K points.

from __future__ import annotations

import torch
from torch import Tensor

from .value_gradient import ValueGradient, sum_of_shares

__all__ = ["backward", "forward", "fused_backward", "fused_forward"]


def forward(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    return torch.ops.mask2former_cuda.forward(value, sizes, locations, weights, None)


def fused_forward(value: Tensor, sizes: list[int], reference_points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    return torch.ops.mask2former_cuda.forward(value, sizes, offsets, logits, reference_points)


def backward(
    grad_output: Tensor, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    total = ValueGradient.start(value, grad_output, weights, weights_are_logits=False)
    grad_locations, grad_weights, _ = torch.ops.mask2former_cuda.backward(
        grad_output, value, sizes, locations, weights, None, total.sums, total.scale, False
    )
    return total.finish(value.dtype), grad_locations, grad_weights


def fused_backward(
    grad_output: Tensor,
    value: Tensor,
    sizes: list[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    with_reference_points: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = ValueGradient.start(value, grad_output, logits, weights_are_logits=True)
    grad_offsets, grad_logits, shares_BTnL2 = torch.ops.mask2former_cuda.backward(
        grad_output, value, sizes, offsets, logits, reference_points, total.sums, total.scale, with_reference_points
    )
    grad_reference = (
        sum_of_shares(shares_BTnL2, reference_points) if with_reference_points else reference_points.new_empty(0)
    )
    return total.finish(value.dtype), grad_reference, grad_offsets, grad_logits
