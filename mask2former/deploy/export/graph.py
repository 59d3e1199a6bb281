"""The whole way from pixels to results as one module of tensors, for exporters to trace."""

# B pictures, Q queries, (h, w) pixels of a picture as the network gets it, (H, W) pixels of the result.

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mask2former.deploy.export.resizing import MapSizes
from mask2former.deploy.export.tasks import OUTPUTS
from mask2former.maskformer_model import MaskFormer
from mask2former.modeling.inference_layers import fold_norms

__all__ = ["INPUTS", "ExportGraph", "output_names"]

#: Names of what the graph takes, in order; without a rule there is only the first.
INPUTS = ("images", "output_size")


def output_names(task: str) -> tuple[str, ...]:
    """Names of what the graph gives, in order."""
    return *OUTPUTS[task], "class_logits", "mask_logits"


class ExportGraph(nn.Module):
    """Normalization, padding, network and the rule of a task."""

    backbone: Any
    head: Any
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: MaskFormer, rule: nn.Module, *, is_bgr: bool, dtype: torch.dtype = torch.float32) -> None:
        """Args:
        model: its network is copied, with norms folded into convolutions.
        rule: see `rule_of_task`.
        is_bgr: the model wants another order of channels than it is given.
        dtype: in which the network computes; the rule computes in float32.
        """
        super().__init__()
        self.backbone, self.head = copy.deepcopy(model.backbone), copy.deepcopy(model.sem_seg_head)
        for network in (self.backbone.eval(), self.head.eval()):
            fold_norms(network)
            network.to(dtype)
        self.rule = rule
        self.is_bgr = is_bgr
        self.dtype = dtype
        self.size_divisibility = max(1, model.size_divisibility)
        self.register_buffer("pixel_mean", model.pixel_mean)
        self.register_buffer("pixel_std", model.pixel_std)

    def forward(self, images: Tensor, output_size: Tensor | None = None) -> tuple[Tensor, ...]:
        """Results of pictures of one size.

        Args:
            images: (B, 3, h, w) uint8 RGB, resized for the network, not padded.
            output_size: (2,) int64, (H, W) of the results; None: (h, w).

        Returns:
            What `OUTPUTS` names for the task, then `class_logits` (B, Q, K + 1), last class = "no object", and
            `mask_logits` (B, Q, h4, w4) at stride 4 of the padded pictures.
        """
        height, width = images.shape[2:]
        output: tuple[int, int] = (height, width)
        if output_size is not None:
            output_height, output_width = output_size.tolist()
            torch._check(output_height >= 1)
            torch._check(output_width >= 1)
            output = (output_height, output_width)
        pixels = images.flip(1) if self.is_bgr else images
        pixels = (pixels - self.pixel_mean) / self.pixel_std
        step = self.size_divisibility
        padded_height, padded_width = (height + step - 1) // step * step, (width + step - 1) // step * step
        pixels = F.pad(pixels, (0, padded_width - width, 0, padded_height - height)).to(self.dtype)
        class_logits_1BQK, masks = self.head.predict(self.backbone(pixels))
        class_logits_BQK, mask_logits_BQhw = class_logits_1BQK[-1].float(), masks.layer(-1).dense().squeeze(2).float()
        sizes = MapSizes((padded_height, padded_width), (height, width), output)
        return *self.rule(class_logits_BQK, mask_logits_BQhw, sizes), class_logits_BQK, mask_logits_BQhw
