"""The number format in which a network runs in inference; results are float32 in any case."""

from __future__ import annotations

import logging
from functools import cache

import torch

__all__ = ["cpu_has_bfloat16", "inference_dtype"]

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def inference_dtype(precision: str, device_type: str) -> torch.dtype | None:
    """The dtype of autocast that MODEL.MASK_FORMER.TEST.PRECISION names; None for "fp32", which needs no autocast.

    A CPU that cannot multiply in bfloat16 computes in float32, with a warning: imitating bfloat16 would be far slower.

    Raises:
        ValueError: the name is unknown, or the device does not have that format.
    """
    key = f"MODEL.MASK_FORMER.TEST.PRECISION={precision!r}"
    if precision not in _DTYPES:
        raise ValueError(f"{key} is unknown; choose from: {', '.join(_DTYPES)}")
    if precision == "fp16" and device_type == "cpu":
        raise ValueError(f"{key} needs a GPU, but the model runs on the CPU (MODEL.DEVICE); choose bf16 or fp32")
    if precision == "bf16" and device_type == "cpu" and not cpu_has_bfloat16():
        logging.getLogger(__name__).warning(f"This CPU has no products in bfloat16: {key} computes in float32")
        return None
    return _DTYPES[precision]


@cache
def cpu_has_bfloat16() -> bool:
    """Whether oneDNN is there and has products in bfloat16 for this CPU: they need AVX-512 or AVX-NE-CONVERT."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
