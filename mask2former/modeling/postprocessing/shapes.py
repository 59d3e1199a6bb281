"""What every rule asks of its arguments."""

from __future__ import annotations

from torch import Tensor

__all__ = ["check_shapes"]


def check_shapes(class_logits: Tensor, mask_logits: Tensor) -> None:
    if class_logits.dim() != 2 or mask_logits.dim() != 3 or len(class_logits) != len(mask_logits):
        raise ValueError(
            "post-processing takes class logits (Q, K + 1) and mask logits (Q, H, W) of one image, got "
            f"{tuple(class_logits.shape)} and {tuple(mask_logits.shape)}"
        )
