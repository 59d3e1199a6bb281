"""Maps of several strides from the last map of a plain Vision Transformer (ViTDet, arXiv:2203.16527, Sec. 3)."""
# B pictures, C channels, (h, w) cells of the ViT's map.

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["SimpleFeaturePyramid"]


class SimpleFeaturePyramid(nn.Module):
    """One branch per map, all from the same input: transposed convolutions, nothing, or max pooling.

    ViTDet's projections of every branch to 256 channels are left out: the pixel decoder starts with its own.
    """

    def __init__(self, *, in_channels: int, in_stride: int, out_strides: list[int]) -> None:
        """Args:
        in_channels: C of the ViT's map; it is halved with each doubling of the resolution.
        in_stride: pixels per cell of the ViT's map, a power of two.
        out_strides: pixels per cell of each map to make, powers of two.
        """
        super().__init__()
        #: Channels of each map.
        self.out_channels = [in_channels // max(in_stride // stride, 1) for stride in out_strides]
        self.branches = nn.ModuleList(_branch(in_channels, in_stride, stride) for stride in out_strides)

    def forward(self, x_BChw: Tensor) -> list[Tensor]:
        """(B, C, h, w) -> one map per branch, (B, C', h * in_stride / out_stride, w * in_stride / out_stride)."""
        return [branch(x_BChw) for branch in self.branches]


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell of (B, C, h, w)."""

    def forward(self, x_BChw: Tensor) -> Tensor:
        return super().forward(x_BChw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _branch(channels: int, in_stride: int, out_stride: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    while in_stride > out_stride:
        if layers:
            layers += [_ChannelNorm(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
        channels, in_stride = channels // 2, in_stride // 2
    while in_stride < out_stride:
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        in_stride *= 2
    return nn.Sequential(*layers)
