"""How much memory this process needed."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import torch

__all__ = ["MemoryMeter", "own_memory"]


class MemoryMeter:
    """Largest memory since `restart`, beyond what was in use when the meter was made.

    On CUDA what torch allocates, on Linux the memory that the process itself has written (no pages of files, such as
    code that is loaded when it is first run); elsewhere unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_known = device.type == "cuda" or (sys.platform == "linux" and _forget_peak())
        self.restart()
        self._start = self._now()

    def restart(self) -> None:
        """Forget the peak, and give back what is free: it shall not serve the next call unseen."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._is_known:
            ctypes.CDLL(None).malloc_trim(0)
            _forget_peak()

    def peak_mib(self) -> float | None:
        """None where it cannot be measured."""
        if not self._is_known:
            return None
        if self._device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self._device) - self._start) / 2**20
        return (_process_bytes("VmHWM") - _process_bytes("RssFile") - self._start) / 2**20

    def _now(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return own_memory() if self._is_known else 0


def own_memory() -> int:
    """Bytes that this process has written and that are resident, without pages of files; on Linux only."""
    return _process_bytes("VmRSS") - _process_bytes("RssFile")


def _forget_peak() -> bool:
    """Whether Linux lets this process reset VmHWM."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _process_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])
