"""Multi-scale deformable attention on a GPU without a compiler: launches the Triton kernels.

Every function takes arguments that `check_arguments` or `check_fused_arguments` accepted, in any memory layout, and
`sizes` as a flat list [height, width, height, width, ...]. Arithmetic runs in float64 where the value is float64 (all
arguments are, then), otherwise in float32. Sizes are plain numbers to the kernels: pictures of a new size cost neither
a compilation nor a transfer.

Only the gradient of the value adds up numbers in an order that changes from run to run. Under
`torch.use_deterministic_algorithms` it adds integers instead, see `_fixed_point_scale`.
"""
# B batch, S value tokens of all levels, T query tokens, n heads, d channels of a head, L levels, K points.

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["backward", "forward", "fused_backward", "fused_forward"]

# Elements (queries times channels) that one program holds of every corner: 8 for each thread of 4 warps.
BLOCK_ELEMENTS = 1024
NUM_WARPS = 4


def forward(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """`ms_deform_attn` of value (B, S, n, d), locations (B, T, n, L, K, 2) and weights; result (B, T, n * d)."""
    return _launch_forward(value, sizes, locations, weights, None)


def fused_forward(
    value: Tensor, sizes: Sequence[int], reference_points: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    """`fused_ms_deform_attn`: reference points (B or 1, T, L, 2), offsets in cells, logits; result (B, T, n * d)."""
    return _launch_forward(value, sizes, offsets, logits, reference_points)


def backward(
    grad_output: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, in the dtypes of these; grad_output is (B, T, n * d)."""
    grad_value, grad_locations, grad_weights, _ = _launch_backward(grad_output, value, sizes, locations, weights, None)
    return grad_value, grad_locations, grad_weights


def fused_backward(
    grad_output: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, reference points, offsets and logits, in the dtypes of these."""
    grad_value, grad_offsets, grad_logits, grad_reference_BTnL2 = _launch_backward(
        grad_output, value, sizes, offsets, logits, reference_points
    )
    shared_axes = (0, 2) if reference_points.shape[0] == 1 else (2,)
    grad_reference = grad_reference_BTnL2.sum(dim=shared_axes).view(reference_points.shape)
    return grad_value, grad_reference.to(reference_points.dtype), grad_offsets, grad_logits


def _launch_forward(
    value: Tensor, sizes: Sequence[int], points: Tensor, weights: Tensor, reference: Tensor | None
) -> Tensor:
    batch, _, num_heads, width = value.shape
    output = value.new_empty(batch, points.shape[1], num_heads * width)
    if output.numel():
        kernel = _load_kernels(value.device.type)[0]
        _launch(kernel, (), value, sizes, points, weights, reference, (output,))
    return output


def _launch_backward(
    grad_output: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    points: Tensor,
    weights: Tensor,
    reference: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, points and weights, and (B, T, n, L, 2) of the reference points through each head."""
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    scale = None
    if torch.are_deterministic_algorithms_enabled():
        scale = _fixed_point_scale(grad_output, weights, weights_are_logits=reference is not None, dtype=dtype)
    summed = torch.zeros(value.shape, dtype=dtype if scale is None else torch.int64, device=value.device)
    make = functools.partial(torch.empty if grad_output.numel() else torch.zeros, device=value.device)
    grad_points = make(points.shape, dtype=points.dtype)
    grad_weights = make(weights.shape, dtype=weights.dtype)
    grad_reference = make((*points.shape[:4], 2) if reference is not None else (0,), dtype=dtype)
    if grad_output.numel():
        kernel = _load_kernels(value.device.type)[1]
        outputs = (scale, summed, grad_points, grad_weights, grad_reference)
        flags = {"FIXED_POINT": scale is not None}
        _launch(kernel, (grad_output.contiguous(),), value, sizes, points, weights, reference, outputs, flags)
    grad_value = summed if scale is None else summed.to(dtype) / scale
    return grad_value.to(value.dtype), grad_points, grad_weights, grad_reference


def _launch(
    kernel: Any,
    first: Sequence[Tensor],
    value: Tensor,
    sizes: Sequence[int],
    points: Tensor,
    weights: Tensor,
    reference: Tensor | None,
    last: Sequence[Tensor | None],
    flags: dict[str, bool] | None = None,
) -> None:
    """Run a kernel: `first` and `last` are the pointers that it takes before and after the four inputs."""
    import triton
    import triton.language as tl

    from .triton_forward import MAX_LEVELS

    batch, num_tokens, num_heads, width = value.shape
    _, num_queries, _, num_levels, num_points, _ = points.shape
    if num_levels > MAX_LEVELS:
        raise ValueError(
            f"the Triton backend takes at most {MAX_LEVELS} levels, got {num_levels}; choose another one, see "
            "available_backends()"
        )
    block_width = triton.next_power_of_2(width)
    block_queries = min(128, max(1, BLOCK_ELEMENTS // block_width))
    is_shared = reference is not None and reference.shape[0] == 1
    grid = (triton.cdiv(num_queries, block_queries) * num_heads * batch,)
    with torch.cuda.device_of(value):  # Triton launches on the current device
        kernel[grid](
            *first,
            value.contiguous(),
            points.contiguous(),
            weights.contiguous(),
            None if reference is None else reference.contiguous(),
            *last,
            num_tokens,
            num_queries,
            0 if is_shared else num_queries * num_levels * 2,
            *sizes,
            *([0] * (2 * MAX_LEVELS - len(sizes))),
            HEADS=num_heads,
            CHANNELS=width,
            LEVELS=num_levels,
            POINTS=num_points,
            BLOCK_T=block_queries,
            BLOCK_D=block_width,
            BLOCK_P=triton.next_power_of_2(num_levels * num_points),
            DTYPE=tl.float64 if value.dtype == torch.float64 else tl.float32,
            FUSED=reference is not None,
            num_warps=NUM_WARPS,
            enable_fp_fusion=True,  # multiply-add in one step; Triton's own default depends on its version
            **(flags or {}),
        )


def _load_kernels(device_type: str) -> tuple[Any, Any]:
    """The forward and the backward kernel; Triton is imported here, not with the package."""
    try:
        import triton
    except ImportError as error:
        raise ImportError(
            "the Triton backend of multi-scale deformable attention needs the package triton: pip install triton "
            "(it is part of PyTorch for Linux), or choose another backend, see available_backends()"
        ) from error
    from .triton_backward import backward_kernel
    from .triton_forward import forward_kernel

    if device_type == "cpu" and isinstance(forward_kernel, triton.JITFunction):
        raise ValueError(
            "the Triton backend needs tensors on a GPU, got cpu; choose another backend, see available_backends(). "
            "To debug on a CPU, set TRITON_INTERPRET=1 before Python starts"
        )
    return forward_kernel, backward_kernel


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
