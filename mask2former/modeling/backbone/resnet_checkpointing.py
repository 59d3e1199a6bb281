"""Activation checkpointing (arXiv:1604.06174) of Detectron2's ResNet, which has none of its own."""
# N pictures, (C, h, w) a map.

from __future__ import annotations

import torch
from detectron2.modeling.backbone.resnet import ResNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpoint_blocks"]


def checkpoint_blocks(backbone: nn.Module) -> None:
    """Let the residual blocks of a ResNet, while it trains, keep only their inputs and be recomputed in the backward
    pass, in place.

    Raises:
        ValueError: it is no ResNet, or has batch norms that learn statistics, which would count every batch twice.
    """
    key = "MODEL.RESNETS.USE_CHECKPOINT"
    if not isinstance(backbone, ResNet):
        raise ValueError(
            f"{key}=True is for MODEL.BACKBONE.NAME=build_resnet_backbone, got {type(backbone).__name__}; Swin and "
            "timm have MODEL.SWIN.USE_CHECKPOINT and MODEL.TIMM.USE_CHECKPOINT"
        )
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules()):
        raise ValueError(
            f"{key}=True recomputes blocks, whose batch norms would count every batch twice: it needs "
            "MODEL.RESNETS.NORM FrozenBN (or one that keeps no statistics)"
        )
    for stage in backbone.stages:
        stage.__class__ = _CheckpointedStage


class _CheckpointedStage(nn.Sequential):
    """Residual blocks one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', h', w')."""
        recompute = self.training and torch.is_grad_enabled()
        for block in self:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x
