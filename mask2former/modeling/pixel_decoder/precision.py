"""In which precision a pixel decoder computes: that of autocast, or always that of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor

__all__ = ["in_configured_precision"]

Maps = dict[str, Tensor]
ForwardFeatures = Callable[[Any, Maps], tuple[Tensor, Tensor | None, list[Tensor]]]


def in_configured_precision(forward_features: ForwardFeatures) -> ForwardFeatures:
    """Decorator of a pixel decoder's `forward_features`, which obeys `self.force_fp32` (MODEL.SEM_SEG_HEAD.FORCE_FP32).

    Without autocast, and with `force_fp32` under autocast too, everything is computed in the dtype of the parameters,
    to which the maps are brought first. Otherwise autocast decides.
    """

    @wraps(forward_features)
    def forward(self: Any, features: Maps) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        weight = self.mask_features.weight
        is_autocast = torch.is_autocast_enabled(weight.device.type)
        if is_autocast and not self.force_fp32:
            return forward_features(self, features)
        features = {name: feature.to(weight.dtype) for name, feature in features.items()}
        # Not entered for nothing: an exported graph could not do without it.
        with torch.autocast(device_type=weight.device.type, enabled=False) if is_autocast else nullcontext():
            return forward_features(self, features)

    return forward
