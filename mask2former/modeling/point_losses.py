"""Mask losses at uncertain points, all maps of a clip at once (Mask2Former, arXiv:2112.01527, Sec. 3.3).

The maps of a clip share their candidates and the points drawn afresh; each map chooses its own among them. So the
points of a map lie as if it had drawn its own, losses have the same expectation, and targets are read once for all
layers.
"""
# M maps, (h, w) cells of a map, N targets, P points of a clip: C candidates first, then those that every map uses.
# U candidates chosen by each map, R = U + P - C points used of each map.

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .point_sampling import PointSource, runs_cpp, sample_logits

__all__ = ["ClipPoints", "draw_clip_points", "paired_dice_losses", "paired_mask_losses", "point_losses"]


class ClipPoints(NamedTuple):
    """Where the masks of a clip may be compared.

    Attributes:
        points: (P, 2) float32, (x, y) in [0, 1]^2 of the padded frame, the candidates first.
        num_candidates: C.
        num_uncertain: U.
    """

    points: Tensor
    num_candidates: int
    num_uncertain: int


def draw_clip_points(
    num_points: int,
    *,
    oversample_ratio: float,
    importance_sample_ratio: float,
    draw_points: PointSource,
    device: torch.device,
) -> ClipPoints:
    """Points of which most will lie near a predicted outline (PointRend, arXiv:1912.08193, Sec. 3.1).

    Args:
        num_points: R.
        oversample_ratio: candidates drawn per point.
        importance_sample_ratio: share of R to be chosen from those candidates; the rest is drawn afresh.
        draw_points: where candidates and fresh points come from, in this order.
    """
    num_candidates = int(oversample_ratio * num_points)
    num_uncertain = int(importance_sample_ratio * num_points)
    candidates_1C2 = draw_points(1, num_candidates, device)
    fresh_1F2 = draw_points(1, num_points - num_uncertain, device)
    return ClipPoints(torch.cat([candidates_1C2, fresh_1F2], dim=1).squeeze(0), num_candidates, num_uncertain)


def paired_mask_losses(logits_MR: Tensor, targets_MR: Tensor) -> Tensor:
    """Mean binary cross-entropy over the points of each pair, logits against values in [0, 1]: (M,)."""
    return F.binary_cross_entropy_with_logits(logits_MR, targets_MR, reduction="none").mean(dim=1)


def paired_dice_losses(logits_MR: Tensor, targets_MR: Tensor) -> Tensor:
    """1 - dice coefficient (with 1 added above and below) of each pair, logits against values in [0, 1]: (M,)."""
    probabilities_MR = logits_MR.sigmoid()
    overlap_M = 2 * (probabilities_MR * targets_MR).sum(dim=1) + 1
    return 1 - overlap_M / (probabilities_MR.sum(dim=1) + targets_MR.sum(dim=1) + 1)


def point_losses(maps_Mhw: Tensor, at: ClipPoints, values_NP: Tensor, target_M: Tensor) -> Tensor:
    """Mask and dice loss of every map against its target, where the map is least certain.

    Args:
        maps_Mhw: predicted logits, float32; differentiable in these.
        at: the points of the clip.
        values_NP: the targets at these points, in [0, 1].
        target_M: which target each map is compared with, int64.

    Returns:
        (2, M): `paired_mask_losses` and `paired_dice_losses` at the U candidates whose logits are closest to zero and
        at all points that are no candidates.
    """
    if not (maps_Mhw.dtype == torch.float32 and runs_cpp(maps_Mhw)):
        return point_losses_reference(maps_Mhw, at, values_NP, target_M)
    losses_2M: Tensor = _PointLosses.apply(maps_Mhw, at, values_NP, target_M)
    return losses_2M


def point_losses_reference(maps_Mhw: Tensor, at: ClipPoints, values_NP: Tensor, target_M: Tensor) -> Tensor:
    """The definition of `point_losses`, in plain PyTorch."""
    index_MR = chosen_points(maps_Mhw, at)
    logits_MR = sample_logits(maps_Mhw, at.points[index_MR])
    targets_MR = values_NP[target_M.unsqueeze(1), index_MR]
    return torch.stack([paired_mask_losses(logits_MR, targets_MR), paired_dice_losses(logits_MR, targets_MR)])


@torch.no_grad()
def chosen_points(maps_Mhw: Tensor, at: ClipPoints) -> Tensor:
    """Indices into the points of the clip that each map uses, the U least certain candidates first: (M, R)."""
    grid_11C2 = (2 * at.points[None, None, : at.num_candidates] - 1).to(maps_Mhw.dtype)
    certainty_MC = F.grid_sample(maps_Mhw.unsqueeze(0), grid_11C2, align_corners=False).abs()[0, :, 0]
    chosen_MU = certainty_MC.topk(at.num_uncertain, dim=1, largest=False, sorted=False).indices
    others = torch.arange(at.num_candidates, len(at.points), device=maps_Mhw.device)
    return torch.cat([chosen_MU, others.expand(len(maps_Mhw), -1)], dim=1)


class _PointLosses(torch.autograd.Function):
    """The C++ version: keeps of each map only which candidates it chose."""

    @staticmethod
    def forward(ctx: Any, maps_Mhw: Tensor, at: ClipPoints, values_NP: Tensor, target_M: Tensor) -> Tensor:
        library = torch.ops.mask2former_cpp
        losses_2M, chosen_MU = library.point_losses(
            maps_Mhw, at.points, values_NP, target_M, at.num_candidates, at.num_uncertain
        )
        ctx.save_for_backward(maps_Mhw, at.points, values_NP, target_M, chosen_MU)
        ctx.num_candidates = at.num_candidates
        return losses_2M

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_2M: Tensor) -> tuple[Tensor | None, ...]:
        grad_Mhw = torch.ops.mask2former_cpp.point_losses_backward(grad_2M, *ctx.saved_tensors, ctx.num_candidates)
        return grad_Mhw, None, None, None
