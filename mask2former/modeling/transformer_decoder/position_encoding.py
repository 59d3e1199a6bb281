"""Sine position encodings of maps and clips (DETR, arXiv:2005.12872, Sec. A.4; clips: arXiv:2112.10764, Sec. 3)."""
# B maps, T frames, (h, w) cells of one level, N features per spatial axis, C = 2N channels.

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mask2former.modeling.constants import cached_constant

__all__ = [
    "SinePositionEncoding",
    "masked_sine_position_encoding_2d",
    "sine_position_encoding_2d",
    "sine_position_encoding_3d",
]

TEMPERATURE = 10000.0  # ratio of the longest to the shortest wavelength
FULL_TURN = 2 * math.pi  # normalized coordinates run from 0 to one period of the fastest feature
EPSILON = 1e-6  # published models were trained with this guard against empty axes, so it is part of the numbers


class SinePositionEncoding(nn.Module):
    """Position encoding as a replaceable part of a decoder; it has neither parameters nor buffers."""

    def __init__(self, *, num_features_per_axis: int, temporal: bool = False) -> None:
        """
        Args:
            num_features_per_axis: half the width of the encoded maps.
            temporal: also encode the frame index, so that frames of a clip differ (a choice of the model, not of T).
        """
        super().__init__()
        self.num_features_per_axis = num_features_per_axis
        self.temporal = temporal

    def forward(self, num_frames: int, height: int, width: int, device: torch.device) -> Tensor:
        """(T, C, h, w) float32 if temporal, else (1, C, h, w), the same for every frame."""
        if self.temporal:
            return sine_position_encoding_3d(num_frames, height, width, self.num_features_per_axis, device)
        return sine_position_encoding_2d(height, width, self.num_features_per_axis, device).unsqueeze(0)

    def extra_repr(self) -> str:
        return f"num_features_per_axis={self.num_features_per_axis}, temporal={self.temporal}"


@cached_constant(max_entries=24)
def sine_position_encoding_2d(
    height: int, width: int, num_features_per_axis: int, device: torch.device | None = None, *, normalize: bool = True
) -> Tensor:
    """Encoding of one map.

    Args:
        normalize: scale coordinates to one full turn; otherwise rows and columns are counted from 1.

    Returns:
        (C, h, w) float32 in [-1, 1]: N features of the row, then N of the column. Channels are adjacent in memory, so that
        flattening to (h * w, C) copies nothing. The result is shared between callers: do not write into it.
    """
    row_hN = _axis_features(height, num_features_per_axis, device, normalize)
    column_wN = _axis_features(width, num_features_per_axis, device, normalize)
    row_hwN = row_hN[:, None].expand(-1, width, -1)
    column_hwN = column_wN[None].expand(height, -1, -1)
    return torch.cat([row_hwN, column_hwN], dim=-1).permute(2, 0, 1)


@cached_constant(max_entries=12)
def sine_position_encoding_3d(
    num_frames: int, height: int, width: int, num_features_per_axis: int, device: torch.device | None = None
) -> Tensor:
    """Encoding of a clip: the encoding of the map plus one of the frame index that spans all C channels.

    Returns:
        (T, C, h, w) float32 in [-2, 2], channels adjacent in memory. Shared between callers: do not write into it.
    """
    frame_TC = _axis_features(num_frames, 2 * num_features_per_axis, device, normalize=True)
    map_Chw = sine_position_encoding_2d(height, width, num_features_per_axis, device)
    return (frame_TC[:, None, None] + map_Chw.permute(1, 2, 0)).permute(0, 3, 1, 2)


def masked_sine_position_encoding_2d(
    padding_Bhw: Tensor, num_features_per_axis: int, *, normalize: bool = True
) -> Tensor:
    """Encoding that counts only cells outside the padding.

    Published models never mask padding; this is for models that do.

    Args:
        padding_Bhw: bool, True where a cell is padding.

    Returns:
        (B, C, h, w) float32 in [-1, 1].
    """
    if padding_Bhw.dim() != 3 or padding_Bhw.dtype != torch.bool:
        raise ValueError(f"padding must be bool (B, h, w), got {padding_Bhw.dtype} {tuple(padding_Bhw.shape)}")
    row_Bhw = (~padding_Bhw).cumsum(1, dtype=torch.float32)
    column_Bhw = (~padding_Bhw).cumsum(2, dtype=torch.float32)
    if normalize:
        row_Bhw = row_Bhw / (row_Bhw[:, -1:, :] + EPSILON) * FULL_TURN
        column_Bhw = column_Bhw / (column_Bhw[:, :, -1:] + EPSILON) * FULL_TURN
    features = [_sine_features(axis_Bhw, num_features_per_axis) for axis_Bhw in (row_Bhw, column_Bhw)]
    return torch.cat(features, dim=-1).permute(0, 3, 1, 2)


def _axis_features(length: int, num_features: int, device: torch.device | None, normalize: bool) -> Tensor:
    """Features (length, num_features) of the positions 1..length of one axis."""
    position_S = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    if normalize:
        position_S = position_S / (position_S[-1:] + EPSILON) * FULL_TURN
    return _sine_features(position_S, num_features)


def _sine_features(position: Tensor, num_features: int) -> Tensor:
    """(...) positions -> (..., num_features): sine and cosine in turn, wavelengths growing geometrically."""
    exponent_N = torch.arange(num_features, device=position.device).div(2, rounding_mode="floor") * 2 / num_features
    angle = position[..., None] / TEMPERATURE**exponent_N
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(-2)
