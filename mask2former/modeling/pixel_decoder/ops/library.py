"""The operators `mask2former::*`: what lets torch.compile, torch.export and autograd see through a backend."""
# B batch, S value tokens of all levels, T query tokens, n heads, d channels of a head, L levels, K points.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .backends import Backend, backend, chosen_backend

__all__ = ["fused_ms_deform_attn_op", "ms_deform_attn_op"]


def _backend_of(value: Tensor) -> Backend:
    return backend(chosen_backend(value.device.type))


# Sizes are symbolic in the schemas, so that a compiled model serves pictures of all sizes.


@torch.library.custom_op("mask2former::ms_deform_attn", mutates_args=())
def ms_deform_attn_op(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """`Backend.forward` of the backend in use."""
    return _backend_of(value).forward(value, list(sizes), locations, weights)


@torch.library.custom_op("mask2former::ms_deform_attn_backward", mutates_args=())
def ms_deform_attn_backward_op(
    grad_output: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`Backend.backward` of the backend in use."""
    return _backend_of(value).backward(grad_output, value, list(sizes), locations, weights)


@torch.library.custom_op("mask2former::fused_ms_deform_attn", mutates_args=())
def fused_ms_deform_attn_op(
    value: Tensor, sizes: Sequence[int], reference_points: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """`Backend.fused_forward` of the backend in use."""
    return _backend_of(value).fused_forward(value, list(sizes), reference_points, offsets, logits)


@torch.library.custom_op("mask2former::fused_ms_deform_attn_backward", mutates_args=())
def fused_ms_deform_attn_backward_op(
    grad_output: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    with_reference_points: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`Backend.fused_backward` of the backend in use."""
    return _backend_of(value).fused_backward(
        grad_output, value, list(sizes), reference_points, offsets, logits, with_reference_points
    )


# ---- shapes without content ------------------------------------------------------------------------------------------


@ms_deform_attn_op.register_fake
def _(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@ms_deform_attn_backward_op.register_fake
def _(
    grad_output: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (value, locations, weights))


@fused_ms_deform_attn_op.register_fake
def _(value: Tensor, sizes: Sequence[int], reference_points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], offsets.shape[1], value.shape[2] * value.shape[3])


@fused_ms_deform_attn_backward_op.register_fake
def _(
    grad_output: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    with_reference_points: bool,
) -> tuple[Tensor, ...]:
    grad_reference = reference_points.new_empty(reference_points.shape if with_reference_points else 0)
    return (
        value.new_empty(value.shape),
        grad_reference,
        offsets.new_empty(offsets.shape),
        logits.new_empty(logits.shape),
    )


# ---- gradients, not differentiable again -----------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, sizes, *rest = inputs
    ctx.save_for_backward(value, *rest)
    ctx.sizes = sizes


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    grad_value, *grads = ms_deform_attn_backward_op(grad_output, value, ctx.sizes, locations, weights)
    return grad_value, None, *grads


def _fused_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, *rest = ctx.saved_tensors
    # Those of a model are constants of the size of the picture: nobody asks for their gradient.
    with_reference_points = ctx.needs_input_grad[2]
    grad_value, grad_reference, *grads = fused_ms_deform_attn_backward_op(
        grad_output, value, ctx.sizes, *rest, with_reference_points
    )
    return grad_value, None, grad_reference if with_reference_points else None, *grads


ms_deform_attn_op.register_autograd(_backward, setup_context=_save)
fused_ms_deform_attn_op.register_autograd(_fused_backward, setup_context=_save)


# ---- work, for torch.utils.flop_counter and mask2former.analysis -----------------------------------------------------


def _count_flops(value_shape: Sequence[int], points_shape: Sequence[int]) -> int:
    """Four neighbors and one weighted sum for every channel of a sample, one step for every coordinate."""
    batch, queries, heads, levels, points = points_shape[:5]
    samples = batch * queries * heads * levels * points
    return 2 * samples * (5 * value_shape[3] + 2)


@register_flop_formula(torch.ops.mask2former.ms_deform_attn)
def _flops(value: Any, sizes: Any, locations: Any, weights: Any, *args: Any, **kwargs: Any) -> int:
    return _count_flops(value, locations)


@register_flop_formula(torch.ops.mask2former.fused_ms_deform_attn)
def _fused_flops(value: Any, sizes: Any, reference: Any, offsets: Any, logits: Any, *args: Any, **kwargs: Any) -> int:
    return _count_flops(value, offsets)
