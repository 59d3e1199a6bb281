"""Multi-scale deformable attention in plain PyTorch (Deformable DETR, arXiv:2010.04159, Sec. 4.1, Eq. 3).

This is the definition that every faster implementation must equal in value and gradient.
"""
# B batch, S value tokens of all levels, T query tokens, n heads, d channels of a head, L levels, K points,
# (h, w) cells of one level.

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import check_arguments

__all__ = ["ms_deform_attn_reference"]


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
    dtype = torch.promote_types(value.dtype, sampling_locations.dtype)
    dtype = torch.promote_types(torch.promote_types(dtype, attention_weights.dtype), torch.float32)
    # Heads join the batch, and queries come last: the innermost loops of grid_sample and of the sum run over queries.
    maps_NdS = value.to(dtype).permute(0, 2, 3, 1).flatten(0, 1)
    grid_LNKT2 = (2 * sampling_locations.to(dtype) - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
    weights_LNKT = attention_weights.to(dtype).permute(3, 0, 2, 4, 1).flatten(1, 2)

    total_NdT = maps_NdS.new_zeros(())
    levels = maps_NdS.split([height * width for height, width in sizes], dim=2)
    for level, (size, map_NdS) in enumerate(zip(sizes, levels, strict=True)):
        sampled_NdKT = F.grid_sample(map_NdS.unflatten(2, size), grid_LNKT2[level], align_corners=False)
        for point in range(sampling_locations.shape[4]):
            total_NdT = total_NdT + sampled_NdKT[:, :, point] * weights_LNKT[level][:, None, point]
    return total_NdT.unflatten(0, (value.shape[0], value.shape[2])).permute(0, 3, 1, 2).flatten(2).to(value.dtype)
