"""Memory for results as large as pictures."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

__all__ = ["empty"]

SMALLEST = 2**23  # bytes that are worth a mapping of their own


def empty(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.empty`; on the CPU in huge pages, where the system gives them to those who ask.

    The first write to each page of 4 KiB waits for the system to clear it: for the scores of a picture that took as
    long as their computation.
    """
    num_bytes = math.prod(size) * dtype.itemsize
    if device.type != "cpu" or num_bytes < SMALLEST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=dtype, device=device)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system without huge pages; then its pages are small ones
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(size)
