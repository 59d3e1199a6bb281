"""Sine position encodings of maps (DETR, arXiv:2005.12872, Sec. A.4) and clips (arXiv:2112.10764, Sec. 3)."""
# B maps, T frames, (h, w) cells of one level, N features per spatial axis, C = 2N channels.

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..constants import cached_constant

__all__ = [
    "SinePositionEncoding2D",
    "SinePositionEncoding3D",
    "masked_sine_position_encoding_2d",
    "sine_position_encoding_2d",
    "sine_position_encoding_3d",
]

TEMPERATURE = 10000.0  # ratio of the longest to the shortest wavelength
FULL_TURN = 2 * math.pi  # normalized coordinates end after one period of the fastest feature
EPSILON = 1e-6  # guards the normalization of empty axes; published models were trained with it in the denominator


class SinePositionEncoding2D(nn.Module):
    """Encoding of the cell inside its frame; all frames of a clip are encoded alike. No parameters, no buffers."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        _check_channels(num_channels)
        self.num_channels = num_channels

    def forward(self, num_frames: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
        """(T * h * w, C) float32, frame index slowest. Shared between callers: do not write into it."""
        encoding_SC = sine_position_encoding_2d(height, width, self.num_channels // 2, device).flatten(0, 1)
        return encoding_SC if num_frames == 1 else encoding_SC.repeat(num_frames, 1)

    def extra_repr(self) -> str:
        return str(self.num_channels)


class SinePositionEncoding3D(nn.Module):
    """Encoding of the cell and of the frame in its clip. No parameters, no buffers."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        _check_channels(num_channels)
        self.num_channels = num_channels

    def forward(self, num_frames: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
        """(T * h * w, C) float32, frame index slowest. Shared between callers: do not write into it."""
        return sine_position_encoding_3d(num_frames, height, width, self.num_channels // 2, device).flatten(0, 2)

    def extra_repr(self) -> str:
        return str(self.num_channels)


@cached_constant(max_entries=24)
def sine_position_encoding_2d(
    height: int, width: int, num_features_per_axis: int, device: torch.device | None = None, *, normalize: bool = True
) -> Tensor:
    """Encoding of the cells of one map.

    Args:
        normalize: scale coordinates to one full turn; otherwise rows and columns are counted from 1.

    Returns:
        (h, w, C) float32 in [-1, 1]: N features of the row, then N of the column. Shared: do not write into it.
    """
    row_hN = _axis_features(height, num_features_per_axis, device, normalize)
    column_wN = _axis_features(width, num_features_per_axis, device, normalize)
    row_hwN = row_hN[:, None].expand(-1, width, -1)
    column_hwN = column_wN[None].expand(height, -1, -1)
    return torch.cat([row_hwN, column_hwN], dim=-1)


@cached_constant(max_entries=12)
def sine_position_encoding_3d(
    num_frames: int, height: int, width: int, num_features_per_axis: int, device: torch.device | None = None
) -> Tensor:
    """Encoding of the cells of a clip: that of the map plus one of the frame index, which spans all C channels.

    Returns:
        (T, h, w, C) float32 in [-2, 2]. Shared: do not write into it.
    """
    frame_TC = _axis_features(num_frames, 2 * num_features_per_axis, device, normalize=True)
    return frame_TC[:, None, None] + sine_position_encoding_2d(height, width, num_features_per_axis, device)


def masked_sine_position_encoding_2d(
    padding_Bhw: Tensor, num_features_per_axis: int, *, normalize: bool = True
) -> Tensor:
    """Encoding that counts only the cells outside the padding (published models count all of them).

    Args:
        padding_Bhw: bool, True where a cell is padding.

    Returns:
        (B, h, w, C) float32 in [-1, 1].
    """
    if padding_Bhw.dim() != 3 or padding_Bhw.dtype != torch.bool:
        raise ValueError(f"padding must be bool (B, h, w), got {padding_Bhw.dtype} {tuple(padding_Bhw.shape)}")
    row_Bhw = (~padding_Bhw).cumsum(1, dtype=torch.float32)
    column_Bhw = (~padding_Bhw).cumsum(2, dtype=torch.float32)
    if normalize:
        row_Bhw = row_Bhw / (row_Bhw[:, -1:, :] + EPSILON) * FULL_TURN
        column_Bhw = column_Bhw / (column_Bhw[:, :, -1:] + EPSILON) * FULL_TURN
    return torch.cat([_sine_features(axis, num_features_per_axis) for axis in (row_Bhw, column_Bhw)], dim=-1)


def _check_channels(num_channels: int) -> None:
    if num_channels % 4:
        raise ValueError(
            f"a sine encoding needs a multiple of 4 channels (sine and cosine of two axes), got {num_channels} "
            "(MODEL.MASK_FORMER.HIDDEN_DIM, MODEL.SEM_SEG_HEAD.CONVS_DIM)"
        )


def _axis_features(length: int, num_features: int, device: torch.device | None, normalize: bool) -> Tensor:
    """Features (length, num_features) of the positions 1..length of one axis."""
    position_S = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    if normalize:
        position_S = position_S / (position_S[-1:] + EPSILON) * FULL_TURN
    return _sine_features(position_S, num_features)


def _sine_features(position: Tensor, num_features: int) -> Tensor:
    """Positions (...) -> (..., num_features): sine and cosine in turn, wavelengths growing geometrically."""
    pair_N = torch.arange(0, num_features, 2, dtype=torch.float32, device=position.device)  # one wavelength per pair
    angle = position[..., None] / TEMPERATURE ** (pair_N / num_features)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)
