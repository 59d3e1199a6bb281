"""Multi-scale deformable attention: one function whatever runs it."""
# B batch, S value tokens of all levels, T query tokens, n heads, d channels of a head, L levels, K points.

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .reference import fused_ms_deform_attn_reference, ms_deform_attn_reference

__all__ = ["available_backends", "fused_ms_deform_attn", "ms_deform_attn"]


def available_backends() -> list[str]:
    """Names of the implementations that can run here, the preferred one first."""
    return ["reference"]


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
    return ms_deform_attn_reference(value, spatial_shapes, sampling_locations, attention_weights)


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
        sampling_offsets: (B, T, n, L, K, 2), (x, y) in cells of the level, added to the reference points.
        attention_logits: (B, T, n, L, K); weights are their softmax over L and K together.

    Returns:
        (B, T, n * d), head index slowest, in the dtype of `value`.

    Raises:
        ValueError: an argument has a wrong shape, dtype or device; the message names it.
    """
    return fused_ms_deform_attn_reference(value, spatial_shapes, reference_points, sampling_offsets, attention_logits)
