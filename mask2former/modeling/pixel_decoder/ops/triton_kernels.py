"""Multi-scale deformable attention on a GPU without a compiler: launches the Triton kernels.

Every function takes arguments that `check_arguments` or `check_fused_arguments` accepted, in any memory layout, and
`sizes` as a flat list [height, width, height, width, ...]. Arithmetic runs in float64 where the value is float64 (all
arguments are, then), otherwise in float32. Sizes are plain numbers to the kernels: pictures of a new size cost neither
a compilation nor a transfer.

Only the gradient of the value adds up numbers in an order that may change from run to run, see `ValueGradient`.
"""
# B batch, S value tokens of all levels, T query tokens, n heads, d channels of a head, L levels, K points.

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import computing_dtype
from .value_gradient import ValueGradient, sum_of_shares

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
    grad_value, grad_locations, grad_weights, _ = _launch_backward(
        grad_output, value, sizes, locations, weights, None, False
    )
    return grad_value, grad_locations, grad_weights


def fused_backward(
    grad_output: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    with_reference_points: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, reference points (if wanted, else empty), offsets and logits, in the dtypes of these."""
    grad_value, grad_offsets, grad_logits, shares_BTnL2 = _launch_backward(
        grad_output, value, sizes, offsets, logits, reference_points, with_reference_points
    )
    grad_reference = (
        sum_of_shares(shares_BTnL2, reference_points) if with_reference_points else reference_points.new_empty(0)
    )
    return grad_value, grad_reference, grad_offsets, grad_logits


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
    with_reference: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, points and weights, and, if wanted, (B, T, n, L, 2) of the reference points by head."""
    total = ValueGradient.start(value, grad_output, weights, weights_are_logits=reference is not None)
    make = functools.partial(torch.empty if grad_output.numel() else torch.zeros, device=value.device)
    grad_points = make(points.shape, dtype=points.dtype)
    grad_weights = make(weights.shape, dtype=weights.dtype)
    grad_reference = make((*points.shape[:4], 2) if with_reference else (0,), dtype=computing_dtype(value))
    if grad_output.numel():
        kernel = _load_kernels(value.device.type)[1]
        outputs = (total.scale, total.sums, grad_points, grad_weights, grad_reference)
        flags = {"FIXED_POINT": total.scale is not None, "WITH_REFERENCE": with_reference}
        _launch(kernel, (grad_output.contiguous(),), value, sizes, points, weights, reference, outputs, flags)
    return total.finish(value.dtype), grad_points, grad_weights, grad_reference


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
