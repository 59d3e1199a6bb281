"""Reading masks at points instead of on the whole grid (Mask2Former, arXiv:2112.01527, Sec. 3.3).

The idea is PointRend's (arXiv:1912.08193). Points are (x, y) in [0, 1]^2 relative to the padded frame, so that the same
point addresses a prediction at stride 4 and a ground truth mask at full size. Reading is bilinear between cell centers;
outside the map counts as zero.
"""
# M masks, R maps or rows (one per pair of masks compared), P points, (H, W) pixels, (h, w) cells of a predicted map.

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PointSource", "sample_logits", "sample_masks", "uncertain_points", "uniform_points"]

#: `(num_maps, num_points, device) -> (num_maps, num_points, 2)` float32 in [0, 1]^2. Whatever draws points takes one of
#: these, so that a comparison can fix them.
PointSource = Callable[[int, int, torch.device], Tensor]


def uniform_points(num_maps: int, num_points: int, device: torch.device) -> Tensor:
    """Independent uniform points from torch's global generator of the device."""
    return torch.rand(num_maps, num_points, 2, device=device)


def sample_masks(masks_MHW: Tensor, mask_index_R: Tensor, points_RP2: Tensor) -> Tensor:
    """Values of chosen masks at points, by gathering the four neighbors of every point.

    The same as grid sampling of `masks[mask_index]`, but masks are neither converted nor copied: of a full-size bool
    mask only the pixels around the points are read.

    Args:
        masks_MHW: bool, uint8 or float, in the padded frame.
        mask_index_R: which mask each row reads, int64.
        points_RP2: float32 in [0, 1]^2; a first dimension of 1 reads all rows at the same points.

    Returns:
        (R, P) float32; in [0, 1] for bool masks, fractional near the border of the mask and of the frame.
    """
    height, width = masks_MHW.shape[-2:]
    rows, row_shares = _neighbors(points_RP2[..., 1], height)
    columns, column_shares = _neighbors(points_RP2[..., 0], width)
    pixels = masks_MHW.reshape(-1)
    first_pixel_R1 = (mask_index_R * (height * width)).unsqueeze(1)
    values_RP = points_RP2.new_zeros(len(mask_index_R), points_RP2.shape[1])
    for row_RP, row_share_RP in zip(rows, row_shares, strict=True):
        row_start_RP = first_pixel_R1 + row_RP * width
        for column_RP, column_share_RP in zip(columns, column_shares, strict=True):
            values_RP += pixels[row_start_RP + column_RP] * (row_share_RP * column_share_RP)
    return values_RP


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


@torch.no_grad()
def uncertain_points(
    logits_Rhw: Tensor,
    *,
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
    draw_points: PointSource = uniform_points,
) -> Tensor:
    """Points where a comparison of masks teaches most: mostly near the predicted outline (PointRend, Sec. 3.1).

    Args:
        logits_Rhw: predicted maps.
        num_points: P.
        oversample_ratio: candidates drawn per point; the logits closest to zero are kept.
        importance_sample_ratio: share of P taken from those candidates; the rest is drawn afresh.
        draw_points: where candidates and fresh points come from, in this order.

    Returns:
        (R, P, 2) float32 in [0, 1]^2, the uncertain points first.
    """
    num_maps, device = len(logits_Rhw), logits_Rhw.device
    num_uncertain = int(importance_sample_ratio * num_points)
    candidates = draw_points(num_maps, int(oversample_ratio * num_points), device)
    certainty = sample_logits(logits_Rhw, candidates).abs()
    chosen = certainty.topk(num_uncertain, dim=1, largest=False, sorted=False).indices
    uncertain = candidates.gather(1, chosen.unsqueeze(2).expand(-1, -1, 2))
    return torch.cat([uncertain, draw_points(num_maps, num_points - num_uncertain, device)], dim=1)
