"""Multi-scale deformable attention in plain PyTorch (Deformable DETR, arXiv:2010.04159, Sec. 4.1, Eq. 3).

This is the definition that every faster implementation must equal in value and gradient.
"""
# B batch, S value tokens of all levels, T query tokens, n heads, N = B * n, d channels of a head, L levels, K points,
# (h, w) cells of one level.

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import cell_sizes, check_arguments, check_fused_arguments, computing_dtype

__all__ = ["fused_ms_deform_attn_reference", "ms_deform_attn_reference"]


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Weighted sum of bilinear samples of every level. Arguments and result: see `ms_deform_attn`.

    Computes in the widest dtype of its arguments, at least float32, and returns the dtype of `value`.
    """
    sizes = check_arguments(value, spatial_shapes, sampling_locations, attention_weights)
    dtype = computing_dtype(value, sampling_locations, attention_weights)
    grid_LBnKT2 = _queries_last(sampling_locations.to(dtype)) * 2 - 1
    weights_LBnKT = _queries_last(attention_weights.to(dtype).unsqueeze(-1)).squeeze(-1)
    return _sum_of_samples(value, sizes, grid_LBnKT2.flatten(1, 2), weights_LBnKT.flatten(1, 2))


def fused_ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """`ms_deform_attn_reference` of locations and weights made from a layer's predictions, see `fused_ms_deform_attn`.

    The arithmetic runs in the layout that sampling needs, where long runs of queries are adjacent.
    """
    sizes = check_fused_arguments(value, spatial_shapes, reference_points, sampling_offsets, attention_logits)
    dtype = computing_dtype(value, reference_points, sampling_offsets, attention_logits)
    offset_LBnKT2 = _queries_last(sampling_offsets.to(dtype))
    center_LB11T2 = (reference_points.to(dtype) * 2 - 1).permute(2, 0, 1, 3)[:, :, None, None]
    step_L11112 = 2 * cell_sizes(tuple(sizes), dtype, value.device)[:, None, None, None, None]
    grid_LBnKT2 = torch.addcmul(center_LB11T2, offset_LBnKT2, step_L11112)

    # One softmax over all levels and points of a query and head, P = L * K.
    logits_BnPT = attention_logits.to(dtype).flatten(3).permute(0, 2, 3, 1).contiguous()
    weights_NLKT = logits_BnPT.softmax(dim=2).flatten(0, 1).unflatten(1, attention_logits.shape[3:])
    return _sum_of_samples(value, sizes, grid_LBnKT2.flatten(1, 2), weights_NLKT.transpose(0, 1))


def _sum_of_samples(value: Tensor, sizes: list[tuple[int, int]], grid_LNKT2: Tensor, weights_LNKT: Tensor) -> Tensor:
    """Sample value (B, S, n, d) at grid coordinates in [-1, 1] and sum with weights -> (B, T, n * d)."""
    batch, _, num_heads, _ = value.shape
    maps_NdS = value.to(grid_LNKT2.dtype).permute(0, 2, 3, 1).flatten(0, 1).contiguous()
    maps = maps_NdS.split([height * width for height, width in sizes], dim=2)
    total_NdT = maps_NdS.new_zeros(*maps_NdS.shape[:2], grid_LNKT2.shape[3])
    # unbind, not indexing: the gradient of every index would be a tensor of the full size.
    for size, map_NdS, grid_NKT2, weights_NKT in zip(
        sizes, maps, grid_LNKT2.unbind(), weights_LNKT.unbind(), strict=True
    ):
        map_Ndhw = map_NdS.unflatten(2, size)
        for grid_NT2, weights_NT in zip(grid_NKT2.unbind(1), weights_NKT.unbind(1), strict=True):
            sampled_Nd1T = F.grid_sample(map_Ndhw, grid_NT2.unsqueeze(1), align_corners=False)
            total_NdT.addcmul_(sampled_Nd1T.squeeze(2), weights_NT.unsqueeze(1))
    return total_NdT.unflatten(0, (batch, num_heads)).permute(0, 3, 1, 2).flatten(2).to(value.dtype)


def _queries_last(x_BTnLKC: Tensor) -> Tensor:
    """(B, T, n, L, K, C) -> (L, B, n, K, T, C), contiguous: the innermost loops then run over queries."""
    return x_BTnLKC.permute(3, 0, 2, 4, 1, 5).contiguous()
