"""One-to-one matching of queries and ground truth by least cost (Mask2Former, arXiv:2112.01527, Sec. 3.3).

The idea is DETR's (arXiv:2005.12872, Sec. 3.1). Costs of all layers come from one sampling of the features and a few
matrix products, they reach the CPU in one copy, and the matching returns to the device in one.
"""
# L prediction layers, B clips, T frames (1 for images), Q queries, K classes, N targets of a clip, P points,
# R matched pairs of the whole batch, (H, W) pixels of the padded frame.

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

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


def pair_costs(logits: Tensor, targets_NP: Tensor) -> tuple[Tensor, Tensor]:
    """Mask and dice cost of every (row, target): logits (..., P), targets in [0, 1] -> two tensors (..., N).

    The first is the mean binary cross-entropy over the points, t * softplus(-x) + (1 - t) * softplus(x), which is
    softplus(x) - x * t: one matrix product serves all pairs. The second is 1 - dice coefficient, with 1 added
    above and below.
    """
    probabilities, softplus_sum, probability_sum = _activated(logits)
    mask_costs = (softplus_sum.unsqueeze(-1) - logits @ targets_NP.T) / targets_NP.shape[1]
    overlap = 2 * (probabilities @ targets_NP.T) + 1
    dice_costs = 1 - overlap / (probability_sum.unsqueeze(-1) + targets_NP.sum(dim=1) + 1)
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
            costs_B_LQN = [self.costs(predictions, clip, target) for clip, target in enumerate(targets)]
        # The step's only copy to the host.
        flat = torch.cat([costs_LQN.flatten() for costs_LQN in costs_B_LQN]).cpu().numpy()
        all_finite = bool(np.isfinite(flat).all())

        columns: list[NDArray[np.int64]] = []
        num_pairs = []
        start = 0
        for clip, costs_LQN in enumerate(costs_B_LQN):
            clip_costs_LQN = flat[start : start + costs_LQN.numel()].reshape(costs_LQN.shape)
            start += costs_LQN.numel()
            pairs = [assign(cost_QN) for cost_QN in clip_costs_LQN]
            num_pairs.append(sum(len(queries) for queries, _ in pairs))
            for layer, (queries, target_index) in enumerate(pairs):
                place = np.broadcast_to(np.array([[clip], [layer]]), (2, len(queries)))
                columns.append(np.concatenate([place, queries[None], target_index[None]]))
        indices_4R = torch.from_numpy(np.concatenate(columns, axis=1)).to(device, non_blocking=True)
        clip_R, layer_R, query_R, target_R = indices_4R
        return Matching(clip_R, layer_R, query_R, target_R, num_pairs, all_finite)

    @torch.no_grad()
    def costs(self, predictions: Predictions, clip: int, target: Target) -> Tensor:
        """Costs of one clip, (L, Q, N) float32."""
        class_logits_LQK = predictions.class_logits[:, clip].float()
        embeddings, features = predictions.masks
        masks_of_clip = MaskLogits(embeddings[:, clip : clip + 1].float(), features[clip : clip + 1].float())
        points_1P2 = self.draw_points(1, self.num_points, class_logits_LQK.device)
        logits_LQP = masks_of_clip.at_points(points_1P2).squeeze(1)  # P counts the points of all T frames from here on
        sampled_NP = sample_masks(target.masks.flatten(0, 1), points_1P2[0]).view(-1, logits_LQP.shape[-1])

        class_cost_LQN = -class_logits_LQK.softmax(dim=-1)[..., target.labels]
        mask_cost_LQN, dice_cost_LQN = pair_costs(logits_LQP, sampled_NP)
        return self.class_weight * class_cost_LQN + self.mask_weight * mask_cost_LQN + self.dice_weight * dice_cost_LQN
