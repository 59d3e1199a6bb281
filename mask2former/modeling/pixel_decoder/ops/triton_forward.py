"""Triton kernel of multi-scale deformable attention, forward, with the steps that the backward kernel shares.

Deformable DETR, arXiv:2010.04159, Sec. 4.1, Eq. 3. Launched by triton_kernels.py, which describes the arguments.
"""
# T queries of one program (BLOCK_T), D channels of one head padded to a power of two (BLOCK_D),
# P = levels * points of one query and head, padded likewise (BLOCK_P).

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["CHANGING_ARGUMENTS", "MAX_LEVELS", "forward_kernel"]

MAX_LEVELS = 8

# Triton compiles a kernel anew whenever a number turns 1 or divisible by 16, unless it is named here. It always does so
# for the entries of a tuple, which is why heights and widths are arguments of their own: pictures have all sizes.
CHANGING_ARGUMENTS = [
    "num_tokens",
    "num_queries",
    "reference_stride",
    *(f"{side}_{level}" for level in range(MAX_LEVELS) for side in ("height", "width")),
]


@triton.jit
def find_queries(num_queries: tl.tensor, HEADS: tl.constexpr, BLOCK_T: tl.constexpr) -> tl.tuple:
    """Batch, head, queries_T and rows_T of this program; rows count (batch, query, head) and are int64.

    A program serves neighboring queries of one head, whose points are neighbors too and share cache lines. Heads run
    fastest, so that programs that run together read and write neighboring memory.
    """
    program = tl.program_id(0)
    head = program % HEADS
    num_blocks = tl.cdiv(num_queries, BLOCK_T)
    batch = (program // HEADS // num_blocks).to(tl.int64)
    queries_T = (program // HEADS) % num_blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    rows_T = (batch * num_queries + queries_T) * HEADS + head
    return batch, head, queries_T, rows_T


@triton.jit
def read_softmax_terms(
    logits: tl.tensor,
    rows_T: tl.tensor,
    is_query_T: tl.tensor,
    COUNT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tuple:
    """Highest logit and sum of exp(logit - highest) over all levels and points of every query, both (T,)."""
    point_P = tl.arange(0, BLOCK_P)
    is_point_P = point_P < COUNT
    mask_TP = is_query_T[:, None] & is_point_P[None, :]
    logits_TP = tl.load(logits + rows_T[:, None] * COUNT + point_P[None, :], mask=mask_TP, other=0.0).to(DTYPE)
    logits_TP = tl.where(is_point_P[None, :], logits_TP, float("-inf"))
    highest_T = tl.max(logits_TP, axis=1)
    return highest_T, tl.sum(tl.exp(logits_TP - highest_T[:, None]), axis=1)


@triton.jit
def read_point(
    points: tl.tensor,
    weights: tl.tensor,
    entries_T: tl.tensor,
    is_query_T: tl.tensor,
    origin_x_T: tl.tensor,
    origin_y_T: tl.tensor,
    scale_x: tl.tensor,
    scale_y: tl.tensor,
    DTYPE: tl.constexpr,
) -> tl.tuple:
    """Column and row of one point in cells, the center of the first cell at 0, and its weight or logit, all (T,)."""
    x_T = tl.load(points + 2 * entries_T, mask=is_query_T, other=0.0).to(DTYPE)
    y_T = tl.load(points + 2 * entries_T + 1, mask=is_query_T, other=0.0).to(DTYPE)
    weight_T = tl.load(weights + entries_T, mask=is_query_T, other=0.0).to(DTYPE)
    return origin_x_T + x_T * scale_x - 0.5, origin_y_T + y_T * scale_y - 0.5, weight_T


@triton.jit
def find_corners(
    x_T: tl.tensor,
    y_T: tl.tensor,
    is_query_T: tl.tensor,
    start: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
) -> tl.tuple:
    """The four cells around a point: token of the top left one (T,), which of the four exist (T,) each, and how far
    the point lies to the right of and below its center, (T,) each, in [0, 1).

    A point at -1 has no share in any cell, but its gradient is that of the cells to its right and below, as in
    `grid_sample`. A point far outside must not reach the conversion to an integer, and neither must NaN.
    """
    is_near_T = is_query_T & (x_T >= -1) & (x_T < width) & (y_T >= -1) & (y_T < height)
    x_T = tl.where(is_near_T, x_T, 0.0)
    y_T = tl.where(is_near_T, y_T, 0.0)
    left_T = tl.floor(x_T)
    top_T = tl.floor(y_T)
    column_T = left_T.to(tl.int32)
    row_T = top_T.to(tl.int32)
    has_left_T = is_near_T & (column_T >= 0)
    has_right_T = is_near_T & (column_T + 1 < width)
    has_top_T = row_T >= 0
    has_bottom_T = row_T + 1 < height
    token_T = start + row_T * width + column_T
    return (
        token_T,
        has_top_T & has_left_T,
        has_top_T & has_right_T,
        has_bottom_T & has_left_T,
        has_bottom_T & has_right_T,
        x_T - left_T,
        y_T - top_T,
    )


@triton.jit
def read_corner(pixels_TD: tl.tensor, exists_T: tl.tensor, is_channel_D: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """Channels of one cell (T, D), zeros outside the map."""
    return tl.load(pixels_TD, mask=exists_T[:, None] & is_channel_D[None, :], other=0.0).to(DTYPE)


@triton.jit(do_not_specialize=CHANGING_ARGUMENTS)
def forward_kernel(
    value: tl.tensor,
    points: tl.tensor,
    weights: tl.tensor,
    reference: tl.tensor,
    output: tl.tensor,
    num_tokens: tl.tensor,
    num_queries: tl.tensor,
    reference_stride: tl.tensor,
    height_0: tl.tensor,
    width_0: tl.tensor,
    height_1: tl.tensor,
    width_1: tl.tensor,
    height_2: tl.tensor,
    width_2: tl.tensor,
    height_3: tl.tensor,
    width_3: tl.tensor,
    height_4: tl.tensor,
    width_4: tl.tensor,
    height_5: tl.tensor,
    width_5: tl.tensor,
    height_6: tl.tensor,
    width_6: tl.tensor,
    height_7: tl.tensor,
    width_7: tl.tensor,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    DTYPE: tl.constexpr,
    FUSED: tl.constexpr,
) -> None:
    """Weighted sum of bilinear samples. FUSED: `points` are offsets, `weights` are logits, `reference` is given."""
    heights = (height_0, height_1, height_2, height_3, height_4, height_5, height_6, height_7)
    widths = (width_0, width_1, width_2, width_3, width_4, width_5, width_6, width_7)
    batch, head, queries_T, rows_T = find_queries(num_queries, HEADS, BLOCK_T)
    is_query_T = queries_T < num_queries
    channel_D = tl.arange(0, BLOCK_D)
    is_channel_D = channel_D < CHANNELS
    token_stride = HEADS * CHANNELS
    head_value_D = value + (batch * num_tokens * HEADS + head) * CHANNELS + channel_D
    if FUSED:
        highest_T, total_T = read_softmax_terms(weights, rows_T, is_query_T, LEVELS * POINTS, BLOCK_P, DTYPE)
    total_TD = tl.zeros((BLOCK_T, BLOCK_D), dtype=DTYPE)
    start = 0
    for level in tl.static_range(LEVELS):
        height = heights[level]
        width = widths[level]
        if FUSED:
            reference_T = reference + batch * reference_stride + (queries_T.to(tl.int64) * LEVELS + level) * 2
            origin_x_T = tl.load(reference_T, mask=is_query_T, other=0.0).to(DTYPE) * width
            origin_y_T = tl.load(reference_T + 1, mask=is_query_T, other=0.0).to(DTYPE) * height
        for point in range(POINTS):
            entries_T = rows_T * (LEVELS * POINTS) + (level * POINTS + point)
            if FUSED:
                x_T, y_T, logit_T = read_point(
                    points, weights, entries_T, is_query_T, origin_x_T, origin_y_T, 1, 1, DTYPE
                )
                weight_T = tl.exp(logit_T - highest_T) / total_T
            else:
                x_T, y_T, weight_T = read_point(points, weights, entries_T, is_query_T, 0, 0, width, height, DTYPE)
            token_T, has_00_T, has_01_T, has_10_T, has_11_T, right_T, down_T = find_corners(
                x_T, y_T, is_query_T, start, height, width
            )
            pixels_TD = head_value_D[None, :] + token_T.to(tl.int64)[:, None] * token_stride
            below_TD = pixels_TD + width.to(tl.int64) * token_stride
            corner_00_TD = read_corner(pixels_TD, has_00_T, is_channel_D, DTYPE)
            corner_01_TD = read_corner(pixels_TD + token_stride, has_01_T, is_channel_D, DTYPE)
            corner_10_TD = read_corner(below_TD, has_10_T, is_channel_D, DTYPE)
            corner_11_TD = read_corner(below_TD + token_stride, has_11_T, is_channel_D, DTYPE)
            top_T = weight_T * (1 - down_T)
            bottom_T = weight_T * down_T
            total_TD += (top_T * (1 - right_T))[:, None] * corner_00_TD + (top_T * right_T)[:, None] * corner_01_TD
            total_TD += (bottom_T * (1 - right_T))[:, None] * corner_10_TD
            total_TD += (bottom_T * right_T)[:, None] * corner_11_TD
        start += height * width
    output_TD = output + rows_T[:, None] * CHANNELS + channel_D[None, :]
    tl.store(output_TD, total_TD.to(output.dtype.element_ty), mask=is_query_T[:, None] & is_channel_D[None, :])
