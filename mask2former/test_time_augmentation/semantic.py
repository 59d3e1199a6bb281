"""Test-time augmentation of semantic segmentation, as published: the scores of all copies are averaged."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA
from torch import Tensor, nn

from .copies import Mapper, augmented_copies

__all__ = ["ScoreMean", "SemanticSegmentorWithTTA", "check_semantic_output"]


class SemanticSegmentorWithTTA(nn.Module):
    """Calls a semantic model on augmented copies of each picture and averages the score maps.

    Sizes and mirroring come from `TEST.AUG.MIN_SIZES`, `TEST.AUG.MAX_SIZE` and `TEST.AUG.FLIP`.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, tta_mapper: Mapper | None = None) -> None:
        """Args:
        cfg: read for `TEST.AUG` when no mapper is given.
        model: answers Detectron2's input format with `sem_seg` (K, H, W).
        tta_mapper: one model input in, its augmented copies out, each with the `transforms` that made it.
        """
        super().__init__()
        check_semantic_output(model)
        self.model = model
        self.tta_mapper = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper
        # What restores the mode after an evaluation looks here, and sets it in the model too.
        self.training = model.training

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Detectron2's inference format; returns only `sem_seg`, (K, height, width) averaged scores per picture."""
        return [{"sem_seg": self._average(single)} for single in batched_inputs]

    def _average(self, single: dict[str, Any]) -> Tensor:
        mean = ScoreMean()
        for copy in augmented_copies(single, self.tta_mapper):  # sizes differ, so each runs alone
            result = self.model([copy.sample])[0]
            if "sem_seg" not in result:
                raise ValueError(
                    f"TEST.AUG.ENABLED: {type(self.model).__name__} gives no sem_seg but {sorted(result)}; of models "
                    "other than MaskFormer only semantic results can be augmented"
                )
            mean.add(result["sem_seg"], is_mirrored=copy.is_mirrored)
        return mean.value()


def check_semantic_output(model: nn.Module) -> None:
    """Only scores have a mean."""
    semantic_output = getattr(model, "semantic_output", "scores")
    if semantic_output != "scores":
        raise ValueError(
            "TEST.AUG.ENABLED averages semantic scores: it needs MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT scores, not "
            f"{semantic_output}"
        )


class ScoreMean:
    """Running mean of the copies' score maps."""

    def __init__(self) -> None:
        self._total_KHW: Tensor | None = None
        self._num_copies = 0

    def add(self, scores_KHW: Tensor, *, is_mirrored: bool) -> None:
        """One copy's scores, (K, height, width); mirrored ones are mirrored back. May be written to."""
        if is_mirrored:
            scores_KHW = scores_KHW.flip(-1)
        self._total_KHW = scores_KHW if self._total_KHW is None else self._total_KHW.add_(scores_KHW)
        self._num_copies += 1

    def value(self) -> Tensor:
        """(K, height, width)."""
        assert self._total_KHW is not None, "a mean needs at least one score map"
        return self._total_KHW / self._num_copies
