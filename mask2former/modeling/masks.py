"""Mask logits as a product of mask embeddings and per-pixel features (Mask2Former, arXiv:2112.01527, Sec. 3.1).

The product is bilinear, so whoever reads the logits first reduces the factors (fewer pixels, fewer queries) and then
multiplies. This module is the only place that multiplies.
"""
# L prediction layers, B clips, T frames (1 for images), Q queries, K classes, C channels, P points, R selected queries,
# (h, w) cells of the per-pixel features (stride 4).

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .inference_layers import inference_products

__all__ = ["MaskLogits", "Predictions", "resize_features"]


def resize_features(features_BTChw: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of every frame to `size` = (height, width): (B, T, C, h, w) -> (B, T, C, height, width)."""
    if features_BTChw.shape[-2:] == size:
        return features_BTChw
    # Flattened while channels are last, if they are: else a single frame gets a stride by which `interpolate` does not
    # recognize its memory format, and it would copy the map first.
    frames_NChw = features_BTChw.permute(0, 1, 3, 4, 2).flatten(0, 1).permute(0, 3, 1, 2)
    resized_NCHW = F.interpolate(frames_NChw, size=size, mode="bilinear", align_corners=False)
    return resized_NCHW.unflatten(0, features_BTChw.shape[:2])


class MaskLogits(NamedTuple):
    """Mask logits (..., B, Q, T, h, w), kept as two factors.

    Attributes:
        embeddings: (..., B, Q, C) mask embeddings; leading dimensions, if any, are prediction layers.
        features: (B, T, C, h, w) per-pixel embeddings, shared by all queries and layers.
    """

    embeddings: Tensor
    features: Tensor

    def dense(self) -> Tensor:
        """All logits, (..., B, Q, T, h, w)."""
        embeddings_BQC = self.embeddings.movedim(-3, 0).flatten(1, -2)
        logits_BQS = inference_products(embeddings_BQC, _rows(self.features))
        num_clips, num_frames, _, height, width = self.features.shape
        shape = (num_clips, *self.embeddings.shape[:-3], self.embeddings.shape[-2], num_frames, height, width)
        return logits_BQS.view(shape).movedim(0, -5)

    def resized(self, size: tuple[int, int]) -> MaskLogits:
        """The same masks bilinearly resized to `size` = (height, width).

        Resizing is linear: this equals resizing `dense()` up to rounding, for C maps instead of Q per layer.
        """
        return MaskLogits(self.embeddings, resize_features(self.features, size))

    def sampled(self, points_BP2: Tensor) -> MaskLogits:
        """The same masks read at P points of every frame, as maps of one row: features (B, T, C, 1, P).

        Args:
            points_BP2: (x, y) in [0, 1]^2 of the padded frame, the same in all frames and for all queries of a clip.
                Outside the map counts as zero (PointRend's convention).
        """
        num_clips, num_frames = self.features.shape[:2]
        grid_BP2 = (2 * points_BP2 - 1).to(self.features.dtype)
        grid_N1P2 = grid_BP2.repeat_interleave(num_frames, dim=0).unsqueeze(1)
        sampled_NC1P = F.grid_sample(self.features.flatten(0, 1), grid_N1P2, align_corners=False)
        return MaskLogits(self.embeddings, sampled_NC1P.unflatten(0, (num_clips, num_frames)))

    def at_points(self, points_BP2: Tensor) -> Tensor:
        """Logits at the points of `sampled`: (..., B, Q, T * P), frame index slowest."""
        return self.sampled(points_BP2).dense().flatten(-3)

    def weighted_sums(self, weights_BNThw: Tensor) -> Tensor:
        """Sums of the logits over all cells of a clip, with weights that N others give these: (..., B, Q, N)."""
        sums_BNC = inference_products(weights_BNThw.flatten(2), _rows(self.features).transpose(1, 2))
        return torch.einsum("...bqc,bnc->...bqn", self.embeddings, sums_BNC)

    def select(self, clip: int, rows: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Logits of chosen queries of one clip.

        Args:
            clip: index along B.
            rows: index tensors into the dimensions of `embeddings` without B, i.e. `queries` or `(layers, queries)`.

        Returns:
            (R, T, h, w).
        """
        embeddings_RC = self.embeddings[..., clip, :, :][rows]
        num_frames, _, height, width = self.features.shape[1:]
        logits_RS = inference_products(embeddings_RC.unsqueeze(0), _rows(self.features[clip : clip + 1])).squeeze(0)
        return logits_RS.view(len(embeddings_RC), num_frames, height, width)

    def layer(self, index: int) -> MaskLogits:
        """The masks of one prediction layer, (B, Q, T, h, w); needs embeddings (L, B, Q, C)."""
        return MaskLogits(self.embeddings[index], self.features)


def _rows(features_BTChw: Tensor) -> Tensor:
    """The vectors of all cells, (B, T * h * w, C); a view, but of several frames whose channels come first."""
    return features_BTChw.permute(0, 1, 3, 4, 2).flatten(1, 3)


class Predictions(NamedTuple):
    """What a transformer decoder says after each of L prediction layers; the last layer is the final word.

    Attributes:
        class_logits: (L, B, Q, K + 1), last class = "no object"; (L, B, Q, 0) without mask classification.
        masks: factors with embeddings (L, B, Q, C).
    """

    class_logits: Tensor
    masks: MaskLogits
