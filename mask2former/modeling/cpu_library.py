"""Whether the losses run on the C++ kernels of the library that holds deformable attention."""

from __future__ import annotations

import logging
from functools import cache

import torch

from .pixel_decoder.ops.backends import chosen_backend

__all__ = ["has_cpp_losses"]


def has_cpp_losses(device: torch.device) -> bool:
    """Whether tensors on this device are for the C++ kernels: where deformable attention runs on those, losses do."""
    return device.type == "cpu" and chosen_backend("cpu") == "cpp" and _library_is_complete()


@cache
def _library_is_complete() -> bool:
    complete = hasattr(torch.ops.mask2former_cpp, "point_losses")
    if not complete:
        logging.getLogger(__name__).warning(
            "The fast mask losses are not used: the C++ library was built from older sources. Build it again with "
            "`make setup` or `pip install --no-build-isolation .`"
        )
    return complete
