"""Training losses of all layers, masks compared at uncertain points (Mask2Former, arXiv:2112.01527, Sec. 3.3)."""
# L prediction layers, B clips, T frames (1 for images), Q queries, K classes, N targets of a clip, R matched pairs,
# M = R*T maps compared, P points, (h, w) cells of a predicted map, (H, W) pixels of the padded frame.

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .masks import MaskLogits, Predictions
from .matcher import HungarianMatcher, Matching
from .point_losses import ClipPoints, draw_clip_points, point_losses
from .point_sampling import PointSource, sample_masks, uniform_points
from .targets import Target

__all__ = ["LossNormalizer", "SetCriterion"]

#: Numbers that mask losses may keep for the backward pass before they are recomputed there in pieces: a map and its
#: points count. At 1024 x 1024 pixels that is 850 pairs, 85 targets in ten layers. In C++ they keep less than 0.3 GB
#: then; plain PyTorch keeps several numbers per point, together about 0.8 GB.
_MAX_KEPT_CELLS = 2**26


class LossNormalizer:
    """What the losses of one optimizer step are divided by.

    Both numbers follow from the number of targets alone, so they are known before the forward pass and can span
    micro-batches and workers: the losses of the parts add up (over micro-batches) and average (over workers) to those
    of the whole. Workers add them up while the network runs; only reading them waits for that.
    """

    def __init__(self, num_masks: int, class_weight_sum: float, device: torch.device) -> None:
        """Args: of this worker's targets and queries. Every worker must make its normalizer in the same order."""
        # Filled on the device: copying a list would wait for all that the device has to do.
        self._sums_2 = torch.stack(
            [torch.full((), float(value), device=device) for value in (num_masks, class_weight_sum)]
        )
        self._num_workers = 1
        self._adding: dist.Work | None = None
        if dist.is_available() and dist.is_initialized():
            self._adding = dist.all_reduce(self._sums_2, async_op=True)
            self._num_workers = dist.get_world_size()

    @property
    def num_masks(self) -> Tensor:
        """Targets per worker, a scalar on the device; of all workers together at least one."""
        return self._added()[0].clamp(min=1) / self._num_workers

    @property
    def class_weight_sum(self) -> Tensor:
        """Weights of the classes that queries should have, per worker, a scalar on the device."""
        return self._added()[1] / self._num_workers

    def _added(self) -> Tensor:
        if self._adding is not None:
            self._adding.wait()
            self._adding = None
        return self._sums_2


class SetCriterion(nn.Module):
    """Classification of every query, mask and dice loss of every matched pair, all in float32."""

    empty_weight: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        loss_weights: Mapping[str, float],
        no_object_weight: float,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        draw_points: PointSource = uniform_points,
        max_kept_cells: int = _MAX_KEPT_CELLS,
    ) -> None:
        """Args:
        num_classes: K, without "no object".
        loss_weights: factors of "loss_ce", "loss_mask" and "loss_dice".
        no_object_weight: weight of the class "no object" relative to the others.
        num_points, oversample_ratio, importance_sample_ratio, draw_points: see `draw_clip_points`.
        max_kept_cells: above this many numbers, mask losses are recomputed in the backward pass piece by piece.
        """
        super().__init__()
        if oversample_ratio < 1:
            raise ValueError(f"MODEL.MASK_FORMER.OVERSAMPLE_RATIO={oversample_ratio} must be at least 1")
        if not 0 <= importance_sample_ratio <= 1:
            raise ValueError(f"MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO={importance_sample_ratio} must be in [0, 1]")
        self.num_classes = num_classes
        self.matcher = matcher
        self.loss_weights = dict(loss_weights)
        self.no_object_weight = no_object_weight
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.draw_points = draw_points
        self.max_kept_cells = max_kept_cells
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight)

    def normalizer(self, num_targets: Sequence[int], num_queries: int) -> LossNormalizer:
        """What the losses of a step with these clips (one count of targets each) must be divided by.

        Every worker must call this equally often: counts are summed over workers, and divided by their number because
        gradients are averaged.

        The published code divides the classification loss by the sum over the worker's own queries, so that a worker
        with few targets weighs more, and counts at least one mask per worker; here both are those of the joined batch.
        """
        matched = sum(min(count, num_queries) for count in num_targets)
        unmatched = num_queries * len(num_targets) - matched
        class_weight_sum = matched + self.no_object_weight * unmatched
        return LossNormalizer(sum(num_targets), class_weight_sum, self.empty_weight.device)

    def forward(
        self, predictions: Predictions, targets: Sequence[Target], normalizer: LossNormalizer | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses of all layers in `predictions`.

        Args:
            predictions: L layers of B clips.
            targets: one per clip.
            normalizer: that of the whole optimizer step, if this batch is only a part of it.

        Returns:
            `loss_ce`, `loss_mask`, `loss_dice` of the last layer, and with suffix `_i` those of each earlier layer i.
            When a matching cost is not finite, every loss is NaN: one worker's bad sample then shows in the gradients
            of all workers, and all of them can skip the step.
        """
        num_layers, _, num_queries, _ = predictions.class_logits.shape
        if normalizer is None:
            normalizer = self.normalizer([len(target.labels) for target in targets], num_queries)
        class_logits_LBQK, masks = predictions
        with torch.amp.autocast(device_type=class_logits_LBQK.device.type, enabled=False):
            predictions = Predictions(
                class_logits_LBQK.float(), MaskLogits(masks.embeddings.float(), masks.features.float())
            )
            matching = self.matcher(predictions, targets)
            class_loss_L = self._class_loss_sums(predictions.class_logits, matching, targets)
            mask_loss_L, dice_loss_L = self._mask_loss_sums(predictions.masks, matching, targets)
            by_name = {
                "loss_ce": class_loss_L / normalizer.class_weight_sum,
                "loss_mask": mask_loss_L / normalizer.num_masks,
                "loss_dice": dice_loss_L / normalizer.num_masks,
            }
        poison = 1.0 if matching.all_finite else float("nan")
        return {
            name if layer == num_layers - 1 else f"{name}_{layer}": loss_L[layer] * (self.loss_weights[name] * poison)
            for layer in range(num_layers)
            for name, loss_L in by_name.items()
        }

    def _class_loss_sums(self, class_logits_LBQK: Tensor, matching: Matching, targets: Sequence[Target]) -> Tensor:
        """Weighted cross-entropy summed over clips and queries, (L,); unmatched queries should say "no object"."""
        labels_LBQ = torch.full(class_logits_LBQK.shape[:3], self.num_classes, device=class_logits_LBQK.device)
        labels_R = torch.cat(
            [
                target.labels[target_index]
                for target, target_index in zip(targets, matching.target.split(matching.num_pairs), strict=True)
            ]
        )
        labels_LBQ[matching.layer, matching.clip, matching.query] = labels_R
        losses = F.cross_entropy(
            class_logits_LBQK.flatten(0, 2), labels_LBQ.flatten(), weight=self.empty_weight, reduction="none"
        )
        return losses.view(len(class_logits_LBQK), -1).sum(dim=1)

    def _mask_loss_sums(self, masks: MaskLogits, matching: Matching, targets: Sequence[Target]) -> Tensor:
        """Mask and dice losses summed over pairs and frames, (2, L); connected to the predictions even without a pair.

        As published, each frame of a pair counts in full, so that both losses grow with T.
        """
        num_frames, _, height, width = masks.features.shape[1:]
        pairs_at_once = max(1, self.max_kept_cells // (num_frames * (height * width + self.num_points)))
        recompute = sum(matching.num_pairs) > pairs_at_once
        sums_2L = masks.embeddings.new_zeros(2, len(masks.embeddings))
        if not any(matching.num_pairs):
            return sums_2L + masks.select(0, (matching.layer, matching.query)).sum()
        first = 0
        for clip, (target, num_pairs) in enumerate(zip(targets, matching.num_pairs, strict=True)):
            at = self._points(masks.features.device)
            values_NP = sample_masks(target.masks.flatten(0, 1), at.points)
            for start in range(first, first + num_pairs, pairs_at_once):
                pairs = slice(start, min(start + pairs_at_once, first + num_pairs))
                arguments = (masks, clip, matching.layer[pairs], matching.query[pairs], matching.target[pairs])
                if recompute:
                    piece_2L = checkpoint(
                        _mask_loss_sums_of_pairs,
                        *arguments,
                        at,
                        values_NP,
                        use_reentrant=False,
                        preserve_rng_state=False,
                    )
                else:
                    piece_2L = _mask_loss_sums_of_pairs(*arguments, at, values_NP)
                sums_2L = sums_2L + piece_2L
            first += num_pairs
        return sums_2L

    def _points(self, device: torch.device) -> ClipPoints:
        return draw_clip_points(
            self.num_points,
            oversample_ratio=self.oversample_ratio,
            importance_sample_ratio=self.importance_sample_ratio,
            draw_points=self.draw_points,
            device=device,
        )


def _mask_loss_sums_of_pairs(
    masks: MaskLogits,
    clip: int,
    layer_R: Tensor,
    query_R: Tensor,
    target_R: Tensor,
    at: ClipPoints,
    values_NP: Tensor,
) -> Tensor:
    """(2, L) sums over pairs of one clip; `values_NP` counts the frames of a target as targets of their own."""
    num_layers, num_frames = len(masks.embeddings), masks.features.shape[1]
    maps_Mhw = masks.select(clip, (layer_R, query_R)).flatten(0, 1)
    frame_T = torch.arange(num_frames, device=target_R.device)
    target_M = (target_R.unsqueeze(1) * num_frames + frame_T).flatten()
    losses_2M = point_losses(maps_Mhw, at, values_NP, target_M)
    # A product with 0/1 columns, because adding at indices is not reproducible on CUDA.
    layer_M = layer_R.repeat_interleave(num_frames)
    is_of_layer_ML = layer_M.unsqueeze(1) == torch.arange(num_layers, device=layer_M.device)
    return losses_2M @ is_of_layer_ML.to(losses_2M.dtype)
