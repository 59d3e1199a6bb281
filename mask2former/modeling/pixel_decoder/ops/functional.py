"""Multi-scale deformable attention: one function whatever runs it."""
# B batch, S value tokens of all levels, T query tokens, n heads, d channels of a head, L levels, K points.

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import check_arguments, check_fused_arguments, computing_dtype
from .backends import EMBEDDING_BAG, PLAIN, REFERENCE, chosen_backend, takes_narrow_points, takes_value
from .embedding_bag import fused_ms_deform_attn_bags, ms_deform_attn_bags
from .library import fused_ms_deform_attn_op, ms_deform_attn_op
from .reference import fused_ms_deform_attn_reference, ms_deform_attn_reference

__all__ = ["fused_ms_deform_attn", "ms_deform_attn"]

_PLAIN = {REFERENCE: ms_deform_attn_reference, EMBEDDING_BAG: ms_deform_attn_bags}
_FUSED_PLAIN = {REFERENCE: fused_ms_deform_attn_reference, EMBEDDING_BAG: fused_ms_deform_attn_bags}


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Every query reads a few points of every level around itself (Deformable DETR, arXiv:2010.04159, Eq. 3).

    Args:
        value: (B, S, n, d), the tokens of all levels one after the other, each level ordered by row.
        spatial_shapes: (height, width) of every level, as a list (no device transfer) or an int64 tensor (L, 2).
        sampling_locations: (B, T, n, L, K, 2), (x, y) with (0, 0) the top left and (1, 1) the bottom right corner of
            the map (not the centers of its corner cells). Anything outside reads zeros.
        attention_weights: (B, T, n, L, K), any real numbers; the model's sum to 1 over L and K.

    Returns:
        (B, T, n * d), head index slowest, in the dtype of `value`.

    Raises:
        ValueError: an argument has a wrong shape, dtype or device; the message names it.
    """
    name = chosen_backend(value.device.type)
    if name in PLAIN:
        return _PLAIN[name](value, spatial_shapes, sampling_locations, attention_weights)
    sizes = check_arguments(value, spatial_shapes, sampling_locations, attention_weights)
    value_BSnd, locations, weights = _in_dtypes_of(name, value, sampling_locations, attention_weights)
    return ms_deform_attn_op(value_BSnd, _flat(sizes), locations, weights).to(value.dtype)


def fused_ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """`ms_deform_attn` that makes locations and weights itself, so that neither needs to be written out.

    Args:
        value: (B, S, n, d), the tokens of all levels one after the other, each level ordered by row.
        spatial_shapes: (height, width) of every level, as a list (no device transfer) or an int64 tensor (L, 2).
        reference_points: (B or 1, T, L, 2), (x, y) in [0, 1] of each level.
        sampling_offsets: (B, T, n, L, K, 2), (x, y) in cells of the level, added to the reference points in float32 at
            least: an offset of a few cells loses little in half precision, a location on the whole map too much.
        attention_logits: (B, T, n, L, K); weights are their softmax over L and K together.

    Returns:
        (B, T, n * d), head index slowest, in the dtype of `value`.

    Raises:
        ValueError: an argument has a wrong shape, dtype or device; the message names it.
    """
    name = chosen_backend(value.device.type)
    if name in PLAIN:
        return _FUSED_PLAIN[name](value, spatial_shapes, reference_points, sampling_offsets, attention_logits)
    sizes = check_fused_arguments(value, spatial_shapes, reference_points, sampling_offsets, attention_logits)
    value_BSnd, offsets, logits, reference = _in_dtypes_of(
        name, value, sampling_offsets, attention_logits, reference_points
    )
    return fused_ms_deform_attn_op(value_BSnd, _flat(sizes), reference, offsets, logits).to(value.dtype)


def _flat(sizes: list[tuple[int, int]]) -> list[int]:
    return [cells for size in sizes for cells in size]


def _in_dtypes_of(name: str, value: Tensor, points: Tensor, weights: Tensor, *references: Tensor) -> tuple[Tensor, ...]:
    """The arguments in dtypes that the backend takes and in which it computes what the reference does.

    That is float64 for all where one of them is; otherwise float32, and the value may stay narrower, and so may points
    and weights with it: the kernels widen what they read.
    """
    dtype = computing_dtype(value, points, weights, *references)
    value_stays = dtype == torch.float32 and takes_value(name, value.dtype)
    points_stay = value_stays and points.dtype == weights.dtype == value.dtype and takes_narrow_points(name)
    return (
        value if value_stays else value.to(dtype),
        *(tensor if points_stay else tensor.to(dtype) for tensor in (points, weights)),
        *(tensor.to(dtype) for tensor in references),
    )
