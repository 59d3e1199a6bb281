"""Masks at one bit per pixel: an eighth of the memory and of the way from worker processes and to the device."""

# ... leading axes such as N masks or (N masks, T frames), (h, w) pixels, w8 bytes = ceil(w / 8).

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["PackedMasks", "unpacked"]

_NUM_BITS = 8


class PackedMasks:
    """Bool masks with eight neighbors of a row in a byte, highest bit first. It may be a field of `Instances`."""

    def __init__(self, bits: Tensor, width: int) -> None:
        """
        Args:
            bits: (..., h, w8) uint8, on any device.
            width: w; bits beyond it are 0.
        """
        self.bits = bits
        self.width = width

    @classmethod
    def pack(cls, masks: Tensor) -> PackedMasks:
        """
        Args:
            masks: (..., h, w) bool on the CPU.
        """
        if masks.dtype != torch.bool or masks.dim() < 3:
            raise ValueError(f"masks must be (N, ..., h, w) bool, got {tuple(masks.shape)} {masks.dtype}")
        return cls(torch.from_numpy(np.packbits(masks.numpy(), axis=-1)), masks.shape[-1])

    def unpack(self) -> Tensor:
        """(..., h, w) bool, where the bits are."""
        if self.bits.device.type != "cpu":
            return unpacked_by_tensors(self.bits, self.width)
        ones = np.unpackbits(self.bits.numpy(), axis=-1, count=self.width)  # ten times faster than torch there
        return torch.from_numpy(ones.view(np.bool_))

    def to(self, *args: Any, **kwargs: Any) -> PackedMasks:
        """On another device; arguments as for `Tensor.to`."""
        return PackedMasks(self.bits.to(*args, **kwargs), self.width)

    @property
    def shape(self) -> torch.Size:
        """Of the masks: (..., h, w)."""
        return torch.Size((*self.bits.shape[:-1], self.width))

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, item: Any) -> PackedMasks:
        """Some of the masks: a slice, or indices or flags of the first axis."""
        return PackedMasks(self.bits[item], self.width)


def unpacked_by_tensors(bits: Tensor, width: int) -> Tensor:
    """What `PackedMasks.unpack` gives, by operations of torch, which run on any device."""
    places = torch.arange(_NUM_BITS - 1, -1, -1, dtype=torch.uint8, device=bits.device)
    ones = bits.unsqueeze(-1).bitwise_right_shift(places).bitwise_and(1)
    return ones.view(torch.bool).flatten(-2)[..., :width]


def unpacked(masks: Any) -> Any:
    """Packed masks as a bool tensor where they are; anything else as it is."""
    return masks.unpack() if isinstance(masks, PackedMasks) else masks
