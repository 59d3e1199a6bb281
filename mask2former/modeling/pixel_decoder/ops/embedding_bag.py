"""Multi-scale deformable attention in plain PyTorch by embedding bags: without gradients faster than the definition.

A head of a query is a bag: it holds the numbers of the 4 * L * K cells around its points, each with the product of
attention and bilinear weight, and the sum that is wanted is the bag's. PyTorch has a kernel for that, which reads the
channels of a cell in one run, as the recommender systems it was made for need it.
"""
# B batch, S value tokens of all levels, T query tokens, n heads, d channels of a head, L levels, K points, P = L * K,
# R cells of all maps with their borders, one after the other.

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import check_arguments, check_fused_arguments, computing_dtype
from .backends import EMBEDDING_BAG

__all__ = ["fused_ms_deform_attn_bags", "ms_deform_attn_bags"]


def ms_deform_attn_bags(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Arguments, result and dtypes: see `ms_deform_attn_reference`."""
    sizes = check_arguments(value, spatial_shapes, sampling_locations, attention_weights)
    dtype = computing_dtype(value, sampling_locations, attention_weights)
    size_L2 = _widths_and_heights(sizes, value, dtype)
    cells_BTnLK2 = sampling_locations.to(dtype) * size_L2[:, None] - 0.5
    return _sum_of_bags(value, sizes, size_L2, cells_BTnLK2, attention_weights.to(dtype))


def fused_ms_deform_attn_bags(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Arguments, result and dtypes: see `fused_ms_deform_attn_reference`."""
    sizes = check_fused_arguments(value, spatial_shapes, reference_points, sampling_offsets, attention_logits)
    dtype = computing_dtype(value, reference_points, sampling_offsets, attention_logits)
    size_L2 = _widths_and_heights(sizes, value, dtype)
    center_BTL2 = reference_points.to(dtype) * size_L2 - 0.5
    # Written out for the points: a sum whose innermost loop has two steps takes ten times as long.
    center_BT1LK2 = center_BTL2[:, :, None, :, None].expand(-1, -1, -1, -1, sampling_offsets.shape[4], -1).contiguous()
    cells_BTnLK2 = center_BT1LK2 + sampling_offsets.to(dtype)

    # Over the innermost axis softmax is slow where P is no multiple of what a vector holds, as with three levels.
    logits_BPX = attention_logits.to(dtype).flatten(3).flatten(1, 2).transpose(1, 2).contiguous()
    weights_BTnLK = logits_BPX.softmax(dim=1).transpose(1, 2).contiguous().view(attention_logits.shape)
    return _sum_of_bags(value, sizes, size_L2, cells_BTnLK2, weights_BTnLK)


def _sum_of_bags(
    value: Tensor, sizes: list[tuple[int, int]], size_L2: Tensor, cells_BTnLK2: Tensor, weights_BTnLK: Tensor
) -> Tensor:
    """Sum of bilinear samples of value (B, S, n, d) at (x, y), 0 the center of the first cell -> (B, T, n * d).

    `size_L2` are `_widths_and_heights` of `sizes`.

    Raises:
        ValueError: there are more samples than 32 bits count.
    """
    batch, num_queries, heads, levels, points, _ = cells_BTnLK2.shape
    num_entries = 2 * cells_BTnLK2.numel()
    if isinstance(num_entries, int) and num_entries >= 2**31:  # else a symbol
        raise ValueError(
            f"{batch} pictures of {num_queries} tokens have {num_entries} samples, {EMBEDDING_BAG} counts up to 2**31: "
            "take fewer at a time"
        )
    dtype = cells_BTnLK2.dtype
    table_BRC = _bordered_maps(value.to(dtype), sizes)
    num_rows = table_BRC.shape[1]

    # Cut off on the border, which is zero.
    limit_nLK2 = size_L2[:, None].expand(heads, levels, points, 2).contiguous()
    cells_BTnLK2 = torch.minimum(cells_BTnLK2.clamp(min=-1), limit_nLK2)
    corner_BTnLK2 = cells_BTnLK2.floor()
    x_share, y_share = (cells_BTnLK2 - corner_BTnLK2).unbind(-1)

    # NaN is no place; its shares are NaN, and so is the result.
    x, y = corner_BTnLK2.nan_to_num().int().unbind(-1)
    row_nLK, start_nLK = _layout(sizes, (heads, levels, points), value.device)
    upper = (y * row_nLK + x) * heads + start_nLK
    if batch != 1:
        start_B = torch.arange(batch, dtype=torch.int32, device=value.device) * (num_rows * heads)
        upper = upper + start_B[:, None, None, None, None]
    lower = upper + row_nLK * heads
    entries_BTn4LK = torch.stack([upper, upper + heads, lower, lower + heads], dim=3)

    lower_weight = weights_BTnLK * y_share
    upper_weight = weights_BTnLK - lower_weight
    lower_right, upper_right = lower_weight * x_share, upper_weight * x_share
    weights_BTn4LK = torch.stack(
        [upper_weight - upper_right, upper_right, lower_weight - lower_right, lower_right], dim=3
    )
    bags = F.embedding_bag(
        entries_BTn4LK.flatten(3).flatten(0, 2),
        table_BRC.view(batch * num_rows * heads, value.shape[3]),
        per_sample_weights=weights_BTn4LK.flatten(3).flatten(0, 2),
        mode="sum",
    )
    return bags.view(batch, num_queries, heads * value.shape[3]).to(value.dtype)


def _bordered_maps(value: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """The maps of all levels with zeros around them, (B, R, n * d): every corner, down to (-1, -1) and up to (w, h),
    has all four neighbors.
    """
    maps = value.flatten(2).split([height * width for height, width in sizes], dim=1)
    bordered = [F.pad(map_.unflatten(1, size), (0, 0, 1, 2, 1, 2)) for map_, size in zip(maps, sizes, strict=True)]
    return torch.cat([map_.flatten(1, 2) for map_ in bordered], dim=1)


def _layout(sizes: list[tuple[int, int]], shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Of `_bordered_maps`: cells from a row to the next, and the entry of cell (0, 0) and a head, both (n, L, K)."""
    rows, starts, first = [], [], 0
    for height, width in sizes:
        rows.append(width + 3)
        starts.append(first + width + 4)
        first = first + (height + 3) * (width + 3)
    heads = shape[0]
    row_nLK, start_nLK = (
        torch.tensor(values, dtype=torch.int32, device=device)[:, None].expand(shape).contiguous()
        for values in (rows, starts)
    )
    return row_nLK, start_nLK * heads + torch.arange(heads, dtype=torch.int32, device=device)[:, None, None]


def _widths_and_heights(sizes: list[tuple[int, int]], value: Tensor, dtype: torch.dtype) -> Tensor:
    """(L, 2)."""
    return torch.tensor([(width, height) for height, width in sizes], dtype=dtype, device=value.device)
