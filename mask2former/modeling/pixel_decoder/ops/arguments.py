"""What every implementation of multi-scale deformable attention may rely on, checked in one place."""
# B batch, S value tokens of all levels, T query tokens, n heads, d channels of a head, L levels, K points.

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...constants import cached_constant

__all__ = ["cell_sizes", "check_arguments", "check_fused_arguments", "computing_dtype", "level_sizes"]


def level_sizes(spatial_shapes: Tensor | Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(height, width) of every level as Python numbers. A CUDA tensor is copied to the host, a list costs nothing."""
    if isinstance(spatial_shapes, Tensor):
        if spatial_shapes.dim() != 2 or spatial_shapes.shape[1] != 2 or spatial_shapes.dtype != torch.int64:
            raise ValueError(
                "spatial_shapes must be int64 (L, 2) or a list of (height, width), got "
                f"{spatial_shapes.dtype} {tuple(spatial_shapes.shape)}"
            )
        return [(height, width) for height, width in spatial_shapes.tolist()]
    if any(len(size) != 2 for size in spatial_shapes):
        raise ValueError(f"spatial_shapes must hold pairs (height, width), got {spatial_shapes}")
    return [(size[0], size[1]) for size in spatial_shapes]


@cached_constant(max_entries=16)
def cell_sizes(sizes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(width, height) of one cell of every level as a share of the map, (L, 2). Shared: do not write into it."""
    return torch.tensor([(1 / width, 1 / height) for height, width in sizes], dtype=dtype, device=device)


def check_arguments(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> list[tuple[int, int]]:
    """The level sizes, after making sure that the arguments of `ms_deform_attn` fit each other.

    Raises:
        ValueError: an argument has a wrong shape, dtype or device; the message names it.
    """
    sizes = _check_value(value, spatial_shapes)
    _check_points("sampling_locations", sampling_locations, "attention_weights", attention_weights, value, sizes)
    return sizes


def check_fused_arguments(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> list[tuple[int, int]]:
    """The level sizes, after making sure that the arguments of `fused_ms_deform_attn` fit each other.

    Raises:
        ValueError: an argument has a wrong shape, dtype or device; the message names it.
    """
    sizes = _check_value(value, spatial_shapes)
    _check_points("sampling_offsets", sampling_offsets, "attention_logits", attention_logits, value, sizes)
    shape, expected = reference_points.shape, (sampling_offsets.shape[1], len(sizes), 2)
    if len(shape) != 4 or shape[0] not in (1, value.shape[0]) or shape[1:] != expected:
        raise ValueError(f"reference_points must be (B or 1, T, L, 2) with T, L, 2 = {expected}, got {tuple(shape)}")
    _check_kind("reference_points", reference_points, value.device)
    return sizes


def computing_dtype(*tensors: Tensor) -> torch.dtype:
    """The widest dtype of the arguments, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _check_value(value: Tensor, spatial_shapes: Tensor | Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    sizes = level_sizes(spatial_shapes)
    if value.dim() != 4:
        raise ValueError(f"value must be (B, S, heads, channels), got {tuple(value.shape)}")
    _check_kind("value", value, value.device)
    if not sizes or any(height < 1 or width < 1 for height, width in sizes):
        raise ValueError(f"spatial_shapes must hold at least one level, all sizes positive, got {sizes}")
    if sum(height * width for height, width in sizes) != value.shape[1]:
        raise ValueError(f"spatial_shapes {sizes} must add up to the {value.shape[1]} tokens of value")
    return sizes


def _check_points(
    points_name: str, points: Tensor, weights_name: str, weights: Tensor, value: Tensor, sizes: list[tuple[int, int]]
) -> None:
    """Coordinates (B, T, n, L, K, 2) and one number for each of them."""
    shape, expected = points.shape, (value.shape[0], value.shape[2], len(sizes))
    if len(shape) != 6 or (shape[0], *shape[2:4]) != expected or shape[4] < 1 or shape[5] != 2:
        raise ValueError(
            f"{points_name} must be (B, T, heads, L, points, 2) with B, heads, L = {expected}, got {tuple(shape)}"
        )
    if weights.shape != shape[:-1]:
        raise ValueError(f"{weights_name} must be {tuple(shape[:-1])} like {points_name}, got {tuple(weights.shape)}")
    _check_kind(points_name, points, value.device)
    _check_kind(weights_name, weights, value.device)


def _check_kind(name: str, tensor: Tensor, device: torch.device) -> None:
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on the device of value, {device}, got {tensor.device}")
