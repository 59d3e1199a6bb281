"""Triton kernel of multi-scale deformable attention, backward (Deformable DETR, arXiv:2010.04159, Sec. 4.1, Eq. 3).

Launched by triton_kernels.py, which describes the arguments.
"""
# T queries of one program (BLOCK_T), D channels of one head padded to a power of two (BLOCK_D),
# P = levels * points of one query and head, padded likewise (BLOCK_P).

from __future__ import annotations

import triton
import triton.language as tl

from .triton_forward import (
    CHANGING_ARGUMENTS,
    find_corners,
    find_queries,
    read_corner,
    read_point,
    read_softmax_terms,
)

__all__ = ["backward_kernel"]


@triton.jit
def add_to_corner(
    gradients_TD: tl.tensor,
    share_T: tl.tensor,
    exists_T: tl.tensor,
    is_channel_D: tl.tensor,
    grad_TD: tl.tensor,
    scale: tl.tensor,
    FIXED_POINT: tl.constexpr,
) -> None:
    """Add a share of a gradient to one cell of every query; several programs add to the same cell."""
    added_TD = share_T[:, None] * grad_TD
    if FIXED_POINT:
        added_TD = (added_TD * scale).to(tl.int64)
    tl.atomic_add(gradients_TD, added_TD, mask=exists_T[:, None] & is_channel_D[None, :], sem="relaxed")


@triton.jit(do_not_specialize=CHANGING_ARGUMENTS)
def backward_kernel(
    grad_output: tl.tensor,
    value: tl.tensor,
    points: tl.tensor,
    weights: tl.tensor,
    reference: tl.tensor,
    fixed_point_scale: tl.tensor,
    grad_value: tl.tensor,
    grad_points: tl.tensor,
    grad_weights: tl.tensor,
    grad_reference: tl.tensor,
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
    FIXED_POINT: tl.constexpr,
    WITH_REFERENCE: tl.constexpr,
) -> None:
    """All gradients of `forward_kernel`; `grad_value` must hold zeros.

    FIXED_POINT: `grad_value` is int64 and counts steps of 1 / `fixed_point_scale`. WITH_REFERENCE: `grad_reference`
    (rows, LEVELS, 2) receives the gradient of the reference points through one head.
    """
    heights = (height_0, height_1, height_2, height_3, height_4, height_5, height_6, height_7)
    widths = (width_0, width_1, width_2, width_3, width_4, width_5, width_6, width_7)
    batch, head, queries_T, rows_T = find_queries(num_queries, HEADS, BLOCK_T)
    is_query_T = queries_T < num_queries
    channel_D = tl.arange(0, BLOCK_D)
    point_P = tl.arange(0, BLOCK_P)
    is_channel_D = channel_D < CHANNELS
    token_stride = HEADS * CHANNELS
    head_offset_D = (batch * num_tokens * HEADS + head) * CHANNELS + channel_D
    grad_TD = read_corner(
        grad_output + rows_T[:, None] * CHANNELS + channel_D[None, :], is_query_T, is_channel_D, DTYPE
    )
    scale = tl.load(fixed_point_scale) if FIXED_POINT else 1
    if FUSED:
        highest_T, total_T = read_softmax_terms(weights, rows_T, is_query_T, LEVELS * POINTS, BLOCK_P, DTYPE)
        weights_TP = tl.zeros((BLOCK_T, BLOCK_P), dtype=DTYPE)
        grad_weights_TP = tl.zeros((BLOCK_T, BLOCK_P), dtype=DTYPE)
    start = 0
    for level in tl.static_range(LEVELS):
        height = heights[level]
        width = widths[level]
        if FUSED:
            reference_T = reference + batch * reference_stride + (queries_T.to(tl.int64) * LEVELS + level) * 2
            origin_x_T = tl.load(reference_T, mask=is_query_T, other=0.0).to(DTYPE) * width
            origin_y_T = tl.load(reference_T + 1, mask=is_query_T, other=0.0).to(DTYPE) * height
            level_grad_x_T = tl.zeros((BLOCK_T,), dtype=DTYPE)
            level_grad_y_T = tl.zeros((BLOCK_T,), dtype=DTYPE)
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
            offsets_TD = head_offset_D[None, :] + token_T.to(tl.int64)[:, None] * token_stride
            below_TD = offsets_TD + width.to(tl.int64) * token_stride
            corner_00_TD = read_corner(value + offsets_TD, has_00_T, is_channel_D, DTYPE)
            corner_01_TD = read_corner(value + offsets_TD + token_stride, has_01_T, is_channel_D, DTYPE)
            corner_10_TD = read_corner(value + below_TD, has_10_T, is_channel_D, DTYPE)
            corner_11_TD = read_corner(value + below_TD + token_stride, has_11_T, is_channel_D, DTYPE)

            # The sample and its slopes along x and y, each times the gradient of the output.
            top_slope_TD = corner_01_TD - corner_00_TD
            bottom_slope_TD = corner_11_TD - corner_10_TD
            top_TD = corner_00_TD + right_T[:, None] * top_slope_TD
            drop_TD = corner_10_TD + right_T[:, None] * bottom_slope_TD - top_TD
            slope_TD = top_slope_TD + down_T[:, None] * (bottom_slope_TD - top_slope_TD)
            grad_weight_T = tl.sum(grad_TD * (top_TD + down_T[:, None] * drop_TD), axis=1)
            grad_x_T = weight_T * tl.sum(grad_TD * slope_TD, axis=1)
            grad_y_T = weight_T * tl.sum(grad_TD * drop_TD, axis=1)

            if FUSED:
                is_this_P = point_P == level * POINTS + point
                weights_TP = tl.where(is_this_P[None, :], weight_T[:, None], weights_TP)
                grad_weights_TP = tl.where(is_this_P[None, :], grad_weight_T[:, None], grad_weights_TP)
                level_grad_x_T += grad_x_T
                level_grad_y_T += grad_y_T
            else:
                grad_x_T *= width
                grad_y_T *= height
                tl.store(grad_weights + entries_T, grad_weight_T.to(grad_weights.dtype.element_ty), mask=is_query_T)
            tl.store(grad_points + 2 * entries_T, grad_x_T.to(grad_points.dtype.element_ty), mask=is_query_T)
            tl.store(grad_points + 2 * entries_T + 1, grad_y_T.to(grad_points.dtype.element_ty), mask=is_query_T)

            top_T = weight_T * (1 - down_T)
            bottom_T = weight_T * down_T
            to_00_TD = grad_value + offsets_TD
            to_10_TD = grad_value + below_TD
            add_to_corner(to_00_TD, top_T * (1 - right_T), has_00_T, is_channel_D, grad_TD, scale, FIXED_POINT)
            add_to_corner(to_00_TD + token_stride, top_T * right_T, has_01_T, is_channel_D, grad_TD, scale, FIXED_POINT)
            add_to_corner(to_10_TD, bottom_T * (1 - right_T), has_10_T, is_channel_D, grad_TD, scale, FIXED_POINT)
            add_to_corner(
                to_10_TD + token_stride, bottom_T * right_T, has_11_T, is_channel_D, grad_TD, scale, FIXED_POINT
            )
        if WITH_REFERENCE:
            to_reference_T = grad_reference + (rows_T * LEVELS + level) * 2
            tl.store(to_reference_T, level_grad_x_T * width, mask=is_query_T)
            tl.store(to_reference_T + 1, level_grad_y_T * height, mask=is_query_T)
        start += height * width
    if FUSED:  # through the softmax
        mean_T = tl.sum(weights_TP * grad_weights_TP, axis=1)
        grad_logits_TP = weights_TP * (grad_weights_TP - mean_T[:, None])
        tl.store(
            grad_weights + rows_T[:, None] * (LEVELS * POINTS) + point_P[None, :],
            grad_logits_TP.to(grad_weights.dtype.element_ty),
            mask=is_query_T[:, None] & (point_P < LEVELS * POINTS)[None, :],
        )
