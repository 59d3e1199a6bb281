"""Mask logits at the size of the result, a few rows at a time (MaskFormer, arXiv:2107.06278, Sec. 3.4)."""
# C maps (Q queries or K classes), (h, w) cells of a map, (H, W) pixels of the result, r rows, b rows of their band.

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..constants import cached_constant

__all__ = ["Axis", "MaskSizes", "Resizing", "RowStream", "resized_to_output", "resizing"]

MAX_REMEMBERED = 2**20  # entries of a matrix that is kept for pictures of the same size
COLUMNS_AT_ONCE = 256  # of the result; few enough that most of the matrix's zeros are left out, many enough for BLAS


class MaskSizes(NamedTuple):
    """(height, width) of an image at the three places where its masks are resized, in pixels."""

    padded: tuple[int, int]  # as the network saw it, with the padding of its batch
    image: tuple[int, int]  # as it was given
    output: tuple[int, int]  # as the result is wanted


class Axis(NamedTuple):
    """How one axis of a map is resized, as a matrix: bilinear resizing is linear, and each axis goes by itself.

    As published there are two steps, to the padded size of the network's input and, without the padding, to the output.
    They are one matrix, so that the map in between never exists. `F.interpolate` makes it, from unit vectors.
    """

    weights: Tensor  # (output, cells) float32
    first: list[int]  # of the cells that an output position reads
    last: list[int]  # one after the last of them

    @classmethod
    def of(cls, cells: int, padded: int, image: int, output: int, device: torch.device) -> Axis:
        make = _remembered_axis if cells * output <= MAX_REMEMBERED else _make_axis
        return make(cells, padded, image, output, device)

    @property
    def length(self) -> int:
        """Positions of the output."""
        return len(self.first)


def _make_axis(cells: int, padded: int, image: int, output: int, device: torch.device) -> Axis:
    weights = _resized_line(_resized_line(torch.eye(cells), padded)[:, :image], output).T.contiguous()
    is_read = (weights != 0).byte()
    first = is_read.argmax(dim=1)
    last = cells - is_read.flip(1).argmax(dim=1)
    return Axis(weights.to(device, non_blocking=True), first.tolist(), last.tolist())


_remembered_axis = cached_constant(max_entries=32)(_make_axis)


def _resized_line(lines: Tensor, length: int) -> Tensor:
    if lines.shape[1] == length:
        return lines
    return F.interpolate(lines[None], size=length, mode="linear", align_corners=False)[0]


def _resized_columns(maps_Crw: Tensor, axis: Axis) -> Tensor:
    """(C, r, w) -> (C, r, W)."""
    if maps_Crw.device.type != "cpu":  # zeros cost a GPU less than more launches
        return maps_Crw @ axis.weights.T
    resized_CrW = maps_Crw.new_empty(*maps_Crw.shape[:2], axis.length)
    for start in range(0, axis.length, COLUMNS_AT_ONCE):
        stop = min(start + COLUMNS_AT_ONCE, axis.length)
        band = slice(axis.first[start], axis.last[stop - 1])
        part = resized_CrW.flatten(0, 1)[:, start:stop]
        torch.mm(maps_Crw[..., band].flatten(0, 1), axis.weights[start:stop, band].T, out=part)
    return resized_CrW


#: Rows (C, stop - start, w) of a map, from `start` to before `stop`.
Rows = Callable[[int, int], Tensor]


class Resizing(NamedTuple):
    """A map (C, h, w) and how it is resized to (C, H, W)."""

    open_source: Callable[[], Rows]  # what it gives is asked from top to bottom, for each row at most once
    num_maps: int  # C
    height: Axis
    width: Axis

    @property
    def size(self) -> tuple[int, int]:
        return self.height.length, self.width.length

    @property
    def bytes_per_pixel(self) -> float:
        """Of a block: the pixel itself and its share of the source, once new and once kept."""
        return 4 * self.num_maps * (1 + 2 * self.height.weights.shape[1] / self.height.length)

    def stream(self) -> RowStream:
        return RowStream(self.open_source(), self.height, self.width)


class RowStream:
    """Rows of the resized map, made when they are asked for, from top to bottom.

    Of the map that is resized, the rows that two blocks share are kept instead of made again.
    """

    def __init__(self, source: Rows, height: Axis, width: Axis) -> None:
        self._source = source
        self._height = height
        self._width = width
        self._kept_CbW: Tensor | None = None  # already as wide as the result
        self._first_kept = 0

    def rows(self, start: int, stop: int) -> Tensor:
        """(C, stop - start, W); where the previous call stopped this one starts, or later."""
        first, last = self._height.first[start], self._height.last[stop - 1]
        band_CbW = self._band(first, last)
        return self._height.weights[start:stop, first:last] @ band_CbW

    def _band(self, first: int, last: int) -> Tensor:
        parts, first_new = [], first
        if self._kept_CbW is not None:
            parts.append(self._kept_CbW[:, first - self._first_kept :])
            first_new = max(first, self._first_kept + self._kept_CbW.shape[1])
        if first_new < last:
            parts.append(_resized_columns(self._source(first_new, last), self._width))
        self._kept_CbW = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        self._first_kept = first
        return self._kept_CbW[:, : last - first]


def resizing(logits_Qhw: Tensor, sizes: MaskSizes) -> Resizing:
    """Masks (Q, h, w) of the padded frame, at any resolution, as rows of the output."""
    height, width = (
        Axis.of(cells, padded, image, output, logits_Qhw.device)
        for cells, padded, image, output in zip(logits_Qhw.shape[-2:], *sizes, strict=True)
    )

    def rows_of_masks(start: int, stop: int) -> Tensor:
        return logits_Qhw[:, start:stop]

    return Resizing(lambda: rows_of_masks, len(logits_Qhw), height, width)


def resized_to_output(logits_Qhw: Tensor, sizes: MaskSizes) -> Tensor:
    """All of it at once: (Q, H, W)."""
    return resizing(logits_Qhw, sizes).stream().rows(0, sizes.output[0])
