"""Arrays that lie in memory as far as a limit allows, and beyond it in temporary files."""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["ArrayStore"]


class ArrayStore:
    """Makes arrays, and remembers how much memory is left.

    Args:
        memory: bytes that arrays may take in memory; None: all of them do.
        folder: of the files, which vanish with the arrays in them; None: the system's folder of temporary files.
    """

    def __init__(self, memory: int | None = None, folder: Path | None = None) -> None:
        self._memory = memory
        self._folder = folder
        self._maps: list[mmap.mmap] = []

    def grants(self, num_bytes: int) -> bool:
        """Whether memory is left for so much; if so, it is taken."""
        if self._memory is None:
            return True
        if num_bytes > self._memory:
            return False
        self._memory -= num_bytes
        return True

    def zeros(self, shape: Sequence[int], dtype: DTypeLike, *, on_disk: bool = False) -> NDArray[Any]:
        """An array of zeros, in memory if it is granted and `on_disk` is False."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if num_bytes == 0 or (not on_disk and self.grants(num_bytes)):
            return np.zeros(shape, dtype)
        with tempfile.TemporaryFile(dir=self._folder, prefix="segmentation_") as file:
            file.truncate(num_bytes)
            file_map = mmap.mmap(file.fileno(), num_bytes)
        self._maps.append(file_map)
        return np.frombuffer(file_map, dtype).reshape(shape)

    def release(self) -> None:
        """Leaves what lies in files to the system, which writes it when it likes; it returns when it is used again."""
        for file_map in self._maps if hasattr(mmap, "MADV_DONTNEED") else ():
            file_map.madvise(mmap.MADV_DONTNEED)
