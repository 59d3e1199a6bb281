"""Test-time augmentation of semantic segmentation: several sizes, each also mirrored, their scores averaged.

This is the multi-scale setting of the published ADE20K, Cityscapes and Mapillary figures (Mask2Former,
arXiv:2112.01527, Sec. 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import TransformList
from detectron2.modeling import DatasetMapperTTA
from fvcore.transforms import HFlipTransform
from torch import Tensor, nn

__all__ = ["SemanticSegmentorWithTTA"]


class SemanticSegmentorWithTTA(nn.Module):
    """Calls a semantic model on augmented copies of each picture and averages the score maps.

    Sizes and mirroring come from `TEST.AUG.MIN_SIZES`, `TEST.AUG.MAX_SIZE` and `TEST.AUG.FLIP`.
    """

    def __init__(
        self, cfg: CfgNode, model: nn.Module, tta_mapper: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None
    ) -> None:
        """Args:
        cfg: read for `TEST.AUG` when no mapper is given.
        model: answers Detectron2's input format with `sem_seg` (K, H, W).
        tta_mapper: one model input in, its augmented copies out, each with the `transforms` that made it.
        """
        super().__init__()
        self.model = model
        self.tta_mapper = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Detectron2's inference format; returns only `sem_seg`, (K, height, width) averaged scores per picture."""
        return [{"sem_seg": self._average(_with_output_size(single))} for single in batched_inputs]

    def _average(self, single: dict[str, Any]) -> Tensor:
        augmented_inputs = self.tta_mapper(single)
        total: Tensor | None = None
        for augmented in augmented_inputs:  # sizes differ, so each runs alone
            transforms = augmented.pop("transforms")
            scores_KHW = self.model([augmented])[0]["sem_seg"]
            if _is_mirrored(transforms):
                scores_KHW = scores_KHW.flip(-1)
            total = scores_KHW if total is None else total.add_(scores_KHW)
        if total is None:
            raise ValueError("test-time augmentation made no copy of the picture; TEST.AUG.MIN_SIZES is empty")
        return total / len(augmented_inputs)


def _with_output_size(single: dict[str, Any]) -> dict[str, Any]:
    """The input with `height` and `width`; without them the picture's own size is meant."""
    height, width = single["image"].shape[-2:]
    return {"height": height, "width": width, **single}


def _is_mirrored(transforms: TransformList) -> bool:
    return any(isinstance(transform, HFlipTransform) for transform in transforms.transforms)
