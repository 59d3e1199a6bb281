"""Instance masks as COCO run lengths (RLE): packed to bits on the device, encoded where they are, one at a time."""
# N instances, M masks, (H, W) pixels of the result, B = ceil(W / 8) bytes of a row, r rows.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from mask2former.run_lengths import encode_rows

__all__ = ["PackedMasks", "RunLengthMasks"]

# Eight bytes of 0 or 1, read as one number and multiplied by this, have their bits in the highest byte, the bit of the
# first byte on top: all 64 partial products fall on different places.
_GATHER_BITS = 0x8040201008040201 - 2**64


class RunLengthMasks(Sequence[Any]):
    """N masks as run lengths, in the place of a (N, H, W) tensor in Detectron2's `Instances`."""

    def __init__(self, rles: list[dict[str, Any]]) -> None:
        """Args:
        rles: in COCO's format, `size` [H, W] and `counts` as text.
        """
        self.rles = rles

    def __len__(self) -> int:
        return len(self.rles)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rles)

    @overload
    def __getitem__(self, item: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, item: slice | Tensor) -> RunLengthMasks: ...

    def __getitem__(self, item: int | slice | Tensor) -> dict[str, Any] | RunLengthMasks:
        if isinstance(item, int):
            return self.rles[item]
        if isinstance(item, slice):
            return RunLengthMasks(self.rles[item])
        indices = torch.arange(len(self))[item.cpu()].flatten().tolist()
        return RunLengthMasks([self.rles[index] for index in indices])

    def decode(self, size: tuple[int, int]) -> Tensor:
        """(N, H, W) bool on the CPU; `size` = (H, W)."""
        if not self.rles:
            return torch.zeros(0, *size, dtype=torch.bool)
        return torch.from_numpy(coco_mask.decode(self.rles)).permute(2, 0, 1).contiguous().bool()


class PackedMasks:
    """M masks from blocks of rows, at one bit per pixel."""

    def __init__(self, num_masks: int, size: tuple[int, int], device: torch.device) -> None:
        self._size = size
        self.bits_MHB = torch.empty((num_masks, size[0], -(-size[1] // 8)), dtype=torch.uint8, device=device)

    def put(self, rows: slice, inside_MrW: Tensor) -> None:
        """Some rows, bool."""
        height, width = inside_MrW.shape[1:]
        bytes_MrV = inside_MrW.new_zeros(len(inside_MrW), height, 8 * self.bits_MHB.shape[2])
        bytes_MrV[:, :, :width] = inside_MrW
        words_MrB = bytes_MrV.view(torch.int64)
        self.bits_MHB[:, rows] = (words_MrB * _GATHER_BITS) >> 56

    def encode(self, bits_MHB: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """Run lengths of the M masks.

        Args:
            bits_MHB: those of this object, on the host.
        """
        return [encode_rows(bits_HB, self._size[1]) for bits_HB in bits_MHB]
