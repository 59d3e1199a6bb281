"""The number format in which a network runs in inference; results are float32 in any case."""

from __future__ import annotations

import torch

__all__ = ["inference_dtype"]

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def inference_dtype(precision: str, device_type: str) -> torch.dtype | None:
    """The dtype of autocast that MODEL.MASK_FORMER.TEST.PRECISION names; None for "fp32", which needs no autocast.

    Raises:
        ValueError: the name is unknown, or the device does not have that format.
    """
    key = f"MODEL.MASK_FORMER.TEST.PRECISION={precision!r}"
    if precision not in _DTYPES:
        raise ValueError(f"{key} is unknown; choose from: {', '.join(_DTYPES)}")
    if precision == "fp16" and device_type == "cpu":
        raise ValueError(f"{key} needs a GPU, but the model runs on the CPU (MODEL.DEVICE); choose bf16 or fp32")
    return _DTYPES[precision]
