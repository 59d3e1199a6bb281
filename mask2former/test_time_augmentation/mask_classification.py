"""Test-time augmentation of everything a MaskFormer can be asked for."""
# K classes.

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..maskformer_model import ImagePrediction, MaskFormer
from ..modeling.postprocessing import image_results
from .copies import Copy, Mapper, augmented_copies
from .merging import MergedQueries
from .semantic import ScoreMean, SemanticSegmentorWithTTA, check_semantic_output

__all__ = ["MaskFormerWithTTA", "with_test_time_augmentation"]


def with_test_time_augmentation(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model with `TEST.AUG` around it, for the same inputs and results.

    A MaskFormer with panoptic or instance results on gets `MaskFormerWithTTA`; a purely semantic one, and any other
    semantic model, is augmented as published.
    """
    model = model.module if isinstance(model, DistributedDataParallel) else model
    if isinstance(model, MaskFormer) and (model.instance_on or model.panoptic_on):
        return MaskFormerWithTTA(cfg, model)
    return SemanticSegmentorWithTTA(cfg, model)


class MaskFormerWithTTA(nn.Module):
    """Runs a MaskFormer on augmented copies of each picture and gives the configured results of all copies together.

    Semantic scores are averaged as published. For panoptic and instance results the queries of the copies are merged
    first (see `merging`), and the ordinary rules are applied to the merged prediction. Copies run one after the other:
    beside the means and the reference's masks, memory holds one at a time.
    """

    def __init__(self, cfg: CfgNode, model: MaskFormer, tta_mapper: Mapper | None = None) -> None:
        """Args:
        cfg: read for `TEST.AUG.MIN_SIZES`, `TEST.AUG.MAX_SIZE` and `TEST.AUG.FLIP` when no mapper is given.
        model: has panoptic or instance results on; with semantic ones alone take `SemanticSegmentorWithTTA`.
        tta_mapper: one model input in, its augmented copies out, each with the `transforms` that made it.
        """
        super().__init__()
        if not (model.instance_on or model.panoptic_on):
            raise ValueError(
                "MaskFormerWithTTA is for MODEL.MASK_FORMER.TEST.PANOPTIC_ON or INSTANCE_ON, both are False: "
                "take SemanticSegmentorWithTTA"
            )
        if model.semantic_on:
            check_semantic_output(model)
        self.model = model
        self.tta_mapper = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper
        # What restores the mode after an evaluation looks here, and sets it in the model too.
        self.training = model.training

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`MaskFormer`'s inference format, both ways."""
        return [self._results(single) for single in batched_inputs]

    def _results(self, single: dict[str, Any]) -> dict[str, Any]:
        copies = _most_like_the_input_first(augmented_copies(single, self.tta_mapper), single["image"].shape[-2:])
        height, width = copies[0].size
        refinement = max(max(copy.size[0] / height, copy.size[1] / width) for copy in copies)
        scores = ScoreMean()
        merged: MergedQueries | None = None
        for copy in copies:
            (prediction,) = self.model.predict([copy.sample])
            with self._full_precision():
                if self.model.semantic_on:
                    scores.add(self._semantic_scores(prediction), is_mirrored=copy.is_mirrored)
                if merged is None:
                    merged = MergedQueries(prediction, is_mirrored=copy.is_mirrored, refinement=refinement)
                else:
                    merged.add(prediction, is_mirrored=copy.is_mirrored)
        assert merged is not None, "augmented_copies gives at least one copy"
        results = {"sem_seg": scores.value()} if self.model.semantic_on else {}
        with self._full_precision():
            segments = replace(self.model.result_settings, semantic_output=None)
            return {**results, **image_results(merged.class_logits, merged.mask_logits, merged.sizes, segments)}

    def _semantic_scores(self, prediction: ImagePrediction) -> Tensor:
        """(K, height, width), as `MaskFormer` gives them when panoptic or instance results are on, too."""
        settings = replace(self.model.result_settings, panoptic_on=False, instance_output=None)
        scores_KHW: Tensor = image_results(prediction.class_logits, prediction.mask_logits, prediction.sizes, settings)[
            "sem_seg"
        ]
        return scores_KHW

    def _full_precision(self) -> torch.amp.autocast:
        """For sums over many pixels, as in the model itself; the network runs as the caller's autocast says."""
        return torch.amp.autocast(device_type=self.model.device.type, enabled=False)


def _most_like_the_input_first(copies: list[Copy], input_size: tuple[int, int]) -> list[Copy]:
    """The copies with the reference in front: not mirrored, and of those the one nearest to the input in size."""
    height, width = input_size

    def difference(copy: Copy) -> tuple[bool, float]:
        return copy.is_mirrored, abs(math.log(copy.size[0] * copy.size[1] / (height * width)))

    nearest = min(range(len(copies)), key=lambda index: difference(copies[index]))
    return [copies[nearest], *copies[:nearest], *copies[nearest + 1 :]]
