"""What every implementation of multi-scale deformable attention may rely on, checked in one place."""
# B batch, S value tokens of all levels, T query tokens, n heads, d channels of a head, L levels, K points.

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["check_arguments", "level_sizes"]


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


def check_arguments(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> list[tuple[int, int]]:
    """The level sizes, after making sure that the arguments fit each other.

    Raises:
        ValueError: an argument has a wrong shape, dtype or device; the message names it.
    """
    sizes = level_sizes(spatial_shapes)
    if value.dim() != 4:
        raise ValueError(f"value must be (B, S, heads, channels), got {tuple(value.shape)}")
    batch, num_tokens, num_heads, _ = value.shape
    if not sizes or any(height < 1 or width < 1 for height, width in sizes):
        raise ValueError(f"spatial_shapes must hold at least one level, all sizes positive, got {sizes}")
    if sum(height * width for height, width in sizes) != num_tokens:
        raise ValueError(f"spatial_shapes {sizes} must add up to the {num_tokens} tokens of value")
    expected = (batch, num_heads, len(sizes))
    shape = sampling_locations.shape
    if len(shape) != 6 or (shape[0], *shape[2:4]) != expected or shape[4] < 1 or shape[5] != 2:
        raise ValueError(
            f"sampling_locations must be (B, T, heads, L, points, 2) with B, heads, L = {expected}, got {tuple(shape)}"
        )
    if attention_weights.shape != shape[:-1]:
        raise ValueError(
            f"attention_weights must be {tuple(shape[:-1])} like sampling_locations, "
            f"got {tuple(attention_weights.shape)}"
        )
    named = {"value": value, "sampling_locations": sampling_locations, "attention_weights": attention_weights}
    for name, tensor in named.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
        if tensor.device != value.device:
            raise ValueError(f"{name} must be on the device of value, {value.device}, got {tensor.device}")
    return sizes
