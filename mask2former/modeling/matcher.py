"""One-to-one matching of queries and ground truth by least cost (Mask2Former, arXiv:2112.01527, Sec. 3.3).

The idea is DETR's (arXiv:2005.12872, Sec. 3.1). Costs of all layers and clips come from one sampling of the features
and a few matrix products, they reach the CPU in one copy, and the matching returns to the device in one.
"""
# L prediction layers, B clips, T frames (1 for images), Q queries, K classes, N targets of a clip (of the largest one
# where clips are stacked), P points of a frame, p of them in a piece, R masks of a clip in all layers or matched pairs
# of the whole batch, (H, W) pixels of the padded frame.

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .inference_layers import inference_products
from .masks import MaskLogits, Predictions
from .point_sampling import PointSource, runs_cpp, sample_masks, uniform_points
from .targets import Target

__all__ = ["HungarianMatcher", "Matching", "assign", "pair_costs"]


class Matching(NamedTuple):
    """Matched pairs of all layers and clips, ordered by clip, then layer, then query.

    Attributes:
        clip, layer, query, target: (R,) int64 on the device of the predictions; `target` counts within the clip.
        num_pairs: pairs of each clip, summed over layers, known on the CPU.
        all_finite: whether every cost was a finite number.
    """

    clip: Tensor
    layer: Tensor
    query: Tensor
    target: Tensor
    num_pairs: list[int]
    all_finite: bool


def pair_costs(masks: MaskLogits, targets_BNTP: Tensor, *, max_numbers: int) -> tuple[Tensor, Tensor]:
    """Mask and dice cost of every (mask, target) of a clip, (B, R, N) each.

    The first is the mean binary cross-entropy over the points, t * softplus(-x) + (1 - t) * softplus(x), which is
    softplus(x) - x * t: one matrix product serves all pairs, and its factor x is a product, too. The second is 1 - dice
    coefficient, with 1 added above and below.

    Args:
        masks: R masks at P points of each frame, embeddings (B, R, C) and features (B, T, C, 1, P).
        targets_BNTP: values in [0, 1] at these points.
        max_numbers: logits that exist at once; the sums over points are made piece by piece.
    """
    num_clips, num_masks = masks.embeddings.shape[:2]
    num_frames, _, _, num_points = masks.features.shape[1:]
    overlap_BRN = masks.embeddings.new_zeros(num_clips, num_masks, targets_BNTP.shape[1])
    softplus_sum_BR1, probability_sum_BR1 = masks.embeddings.new_zeros(2, num_clips, num_masks, 1)
    points_at_once = max(1, max_numbers // (num_clips * num_masks * num_frames))
    for start in range(0, num_points, points_at_once):
        piece = slice(start, start + points_at_once)
        logits_BRp = MaskLogits(masks.embeddings, masks.features[..., piece]).dense().flatten(2)
        probabilities_BRp, softplus_sum_BR, probability_sum_BR = _activated(logits_BRp)
        overlap_BRN += inference_products(probabilities_BRp, targets_BNTP[..., piece].flatten(2))
        softplus_sum_BR1 += softplus_sum_BR.unsqueeze(2)
        probability_sum_BR1 += probability_sum_BR.unsqueeze(2)
    mask_costs = (softplus_sum_BR1 - masks.weighted_sums(targets_BNTP.unsqueeze(3))) / (num_frames * num_points)
    target_sum_B1N = targets_BNTP.sum(dim=(2, 3)).unsqueeze(1)
    dice_costs = 1 - (2 * overlap_BRN + 1) / (probability_sum_BR1 + target_sum_B1N + 1)
    return mask_costs, dice_costs


def _activated(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (..., P) and, summed over the points, softplus and probabilities."""
    if logits.dtype == torch.float32 and runs_cpp(logits):
        activated: tuple[Tensor, Tensor, Tensor] = torch.ops.mask2former_cpp.activate_logits(logits)
        return activated
    probabilities = logits.sigmoid()
    return probabilities, F.softplus(logits).sum(dim=-1), probabilities.sum(dim=-1)


def assign(cost_QN: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The min(Q, N) pairs of least total cost, without those whose cost is not finite.

    Returns:
        Query and target indices of the pairs, queries ascending.
    """
    is_finite = np.isfinite(cost_QN)
    if not is_finite.all():
        # So dear that a pair is taken only where no assignment avoids it; then it is dropped below.
        finite = cost_QN[is_finite].astype(np.float64)
        highest, lowest = (finite.max(), finite.min()) if finite.size else (0.0, 0.0)
        cost_QN = np.where(is_finite, cost_QN, highest + (highest - lowest + 1) * min(cost_QN.shape))
    queries, targets = linear_sum_assignment(cost_QN)
    keep = is_finite[queries, targets]
    return queries[keep], targets[keep]


class HungarianMatcher(nn.Module):
    """Matches each layer of each clip on its own, by class probability and by agreement of masks at random points."""

    def __init__(
        self,
        *,
        class_weight: float,
        mask_weight: float,
        dice_weight: float,
        num_points: int,
        draw_points: PointSource = uniform_points,
    ) -> None:
        """Args:
        class_weight, mask_weight, dice_weight: weights of the three costs.
        num_points: P, points per frame; queries, targets, layers and frames of a clip share them.
        draw_points: where they come from.
        """
        super().__init__()
        if class_weight == 0 and mask_weight == 0 and dice_weight == 0:
            raise ValueError(
                "MODEL.MASK_FORMER.CLASS_WEIGHT, MASK_WEIGHT and DICE_WEIGHT are all 0: nothing is left to match by"
            )
        if num_points < 1:
            raise ValueError(f"MODEL.MASK_FORMER.TRAIN_NUM_POINTS={num_points} must be at least 1")
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.num_points = num_points
        self.draw_points = draw_points

    @torch.no_grad()
    def forward(self, predictions: Predictions, targets: Sequence[Target]) -> Matching:
        """Match every layer of every clip; targets that exceed the number of queries stay unmatched."""
        device = predictions.class_logits.device
        with torch.amp.autocast(device_type=device.type, enabled=False):
            # The step's only copy to the host.
            costs_LBQN = self.costs(predictions, targets).cpu().numpy()
        all_finite = True
        columns: list[NDArray[np.int64]] = []
        num_pairs = []
        for clip, target in enumerate(targets):
            clip_costs_LQN = costs_LBQN[:, clip, :, : len(target.labels)]
            all_finite = all_finite and bool(np.isfinite(clip_costs_LQN).all())
            pairs = [assign(cost_QN) for cost_QN in clip_costs_LQN]
            num_pairs.append(sum(len(queries) for queries, _ in pairs))
            for layer, (queries, target_index) in enumerate(pairs):
                place = np.broadcast_to(np.array([[clip], [layer]]), (2, len(queries)))
                columns.append(np.concatenate([place, queries[None], target_index[None]]))
        indices_4R = torch.from_numpy(np.concatenate(columns, axis=1)).to(device, non_blocking=True)
        clip_R, layer_R, query_R, target_R = indices_4R
        return Matching(clip_R, layer_R, query_R, target_R, num_pairs, all_finite)

    @torch.no_grad()
    def costs(self, predictions: Predictions, targets: Sequence[Target]) -> Tensor:
        """Costs of all layers and clips, (L, B, Q, N) float32; beyond the targets of a clip they mean nothing."""
        num_layers, num_clips, num_queries, _ = predictions.class_logits.shape
        device = predictions.class_logits.device
        labels_BN = pad_sequence([target.labels for target in targets], batch_first=True)
        class_scores_LBQK = predictions.class_logits.float().softmax(dim=-1)
        class_cost_LBQN = -class_scores_LBQK.gather(
            -1, labels_BN[None, :, None].expand(num_layers, -1, num_queries, -1)
        )

        points_BP2 = self.draw_points(num_clips, self.num_points, device)
        # The masks of each clip are read where they lie: joining them would copy them at full size.
        sampled_BNTP = pad_sequence(
            [
                sample_masks(target.masks.flatten(0, 1), points_P2).unflatten(0, target.masks.shape[:2])
                for target, points_P2 in zip(targets, points_BP2, strict=True)
            ],
            batch_first=True,
        )
        embeddings_LBQC, features = predictions.masks
        masks = MaskLogits(embeddings_LBQC.float().transpose(0, 1).flatten(1, 2), features.float())
        costs_B_LQ_N = pair_costs(masks.sampled(points_BP2), sampled_BNTP, max_numbers=_max_numbers(device))
        mask_cost_LBQN, dice_cost_LBQN = (
            cost.unflatten(1, (num_layers, num_queries)).transpose(0, 1) for cost in costs_B_LQ_N
        )
        return (
            self.class_weight * class_cost_LBQN + self.mask_weight * mask_cost_LBQN + self.dice_weight * dice_cost_LBQN
        )


def _max_numbers(device: torch.device) -> int:
    """Logits at points that exist at once: on the CPU few enough to stay in the cache, elsewhere few pieces."""
    return 2**20 if device.type == "cpu" else 2**26
