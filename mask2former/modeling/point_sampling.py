"""Reading masks at points instead of on the whole grid (Mask2Former, arXiv:2112.01527, Sec. 3.3).

The idea is PointRend's (arXiv:1912.08193). Points are (x, y) in [0, 1]^2 relative to the padded frame, so that the same
point addresses a prediction at stride 4 and a ground truth mask at full size. Reading is bilinear between cell centers;
outside the map counts as zero.
"""
# N masks, R predicted maps, P points, (H, W) pixels, (h, w) cells of a predicted map.

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .pixel_decoder.ops.backends import chosen_backend

__all__ = ["PointSource", "runs_cpp", "sample_logits", "sample_masks", "uniform_points"]

#: `(num_maps, num_points, device) -> (num_maps, num_points, 2)` float32 in [0, 1]^2. Whatever draws points takes one of
#: these, so that a comparison can fix them.
PointSource = Callable[[int, int, torch.device], Tensor]


def uniform_points(num_maps: int, num_points: int, device: torch.device) -> Tensor:
    """Independent uniform points from torch's global generator of the device."""
    return torch.rand(num_maps, num_points, 2, device=device)


def runs_cpp(tensor: Tensor) -> bool:
    """Whether C++ kernels are for this tensor: on the CPU, where deformable attention runs on those of its library."""
    return tensor.device.type == "cpu" and chosen_backend("cpu") == "cpp"


def sample_masks(masks_NHW: Tensor, points_P2: Tensor) -> Tensor:
    """Values of masks at points that they share, by gathering the four neighbors of every point.

    The same as grid sampling, but masks are neither converted nor copied: of a full-size bool mask only the pixels
    around the points are read.

    Args:
        masks_NHW: bool, uint8 or float, in the padded frame.
        points_P2: float32 in [0, 1]^2.

    Returns:
        (N, P) float32; in [0, 1] for bool masks, fractional near the border of the mask and of the frame.
    """
    if masks_NHW.dtype == torch.bool and runs_cpp(masks_NHW):
        sampled_NP: Tensor = torch.ops.mask2former_cpp.sample_masks(masks_NHW, points_P2)
        return sampled_NP
    height, width = masks_NHW.shape[-2:]
    rows, row_shares = _neighbors(points_P2[:, 1], height)
    columns, column_shares = _neighbors(points_P2[:, 0], width)
    pixels_NS = masks_NHW.flatten(1)
    values_NP = points_P2.new_zeros(len(masks_NHW), len(points_P2))
    for row_P, row_share_P in zip(rows, row_shares, strict=True):
        for column_P, column_share_P in zip(columns, column_shares, strict=True):
            values_NP += pixels_NS[:, row_P * width + column_P] * (row_share_P * column_share_P)
    return values_NP


def _neighbors(place: Tensor, length: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Along one axis of `length` cells: the indices of the two cells around each place in [0, 1], and their shares.

    A cell outside the axis has share 0 and, so that it can be read all the same, the index of the nearest one inside.
    """
    position = place * length - 0.5
    low = position.floor()
    share = position - low
    low_index = low.long()
    low_share = (1 - share) * (low_index >= 0)
    high_share = share * (low_index < length - 1)
    return (low_index.clamp(0, length - 1), (low_index + 1).clamp(0, length - 1)), (low_share, high_share)


def sample_logits(logits_Rhw: Tensor, points_RP2: Tensor) -> Tensor:
    """Values of each map at its own points, differentiable in the maps: (R, h, w), (R, P, 2) -> (R, P)."""
    grid_R1P2 = (2 * points_RP2 - 1).unsqueeze(1).to(logits_Rhw.dtype)
    return F.grid_sample(logits_Rhw.unsqueeze(1), grid_R1P2, align_corners=False).flatten(1)
