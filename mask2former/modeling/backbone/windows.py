"""Windows of a map and the attention inside them (Swin Transformer, arXiv:2103.14030, Sec. 3.2)."""
# B images, (h, w) tokens of a map, C channels, M window side, V windows of one image, S = M * M tokens of a window,
# n heads, d = C / n.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..constants import cached_constant

__all__ = [
    "WindowAttention",
    "join_windows",
    "relative_position_index",
    "shifted_region_logits",
    "split_into_windows",
]

CROSS_REGION_LOGIT = -100.0  # added where the cyclic shift brought tokens together that are no neighbors


class WindowAttention(nn.Module):
    """Self-attention inside each window with a learned bias per head and relative position (Sec. 3.2)."""

    relative_position_index: Tensor

    def __init__(
        self,
        *,
        embed_dim: int,
        window_size: int,
        num_heads: int,
        qkv_bias: bool,
        logit_scale: float | None,
        attention_dropout: float,
        output_dropout: float,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"a Swin stage of width {embed_dim} cannot be split into {num_heads} heads "
                "(MODEL.SWIN.EMBED_DIM, doubled per stage, and MODEL.SWIN.NUM_HEADS)"
            )
        self.num_heads = num_heads
        self.logit_scale = logit_scale or (embed_dim // num_heads) ** -0.5
        self.attention_dropout = attention_dropout
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(output_dropout)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, windows: Tensor, region_logits_VSS: Tensor | None) -> Tensor:
        """Attend.

        Args:
            windows: (B * V, S, C), the windows of one image adjacent.
            region_logits_VSS: added to the logits, see `shifted_region_logits`; None adds nothing.

        Returns:
            (B * V, S, C).
        """
        qkv = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # (B * V, n, S, d)
        attend = self._attend_with_gradients if torch.is_grad_enabled() else self._attend
        mixed = attend(query, key, value, region_logits_VSS).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(mixed))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, region_logits_VSS: Tensor | None) -> Tensor:
        """Fused attention; the kernels of CPUs take what is added to the logits only where it needs no gradient."""
        logits = self._position_logits().unsqueeze(0)
        if region_logits_VSS is not None:
            num_images = query.shape[0] // region_logits_VSS.shape[0]  # `len` would fix it in an exported graph
            logits = (logits + region_logits_VSS.unsqueeze(1)).repeat(num_images, 1, 1, 1)
        dropout = self.attention_dropout if self.training else 0.0
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=logits.to(query.dtype), dropout_p=dropout, scale=self.logit_scale
        )

    def _attend_with_gradients(
        self, query: Tensor, key: Tensor, value: Tensor, region_logits_VSS: Tensor | None
    ) -> Tensor:
        logits = (query * self.logit_scale) @ key.transpose(-2, -1) + self._position_logits()
        if region_logits_VSS is not None:
            per_image = logits.unflatten(0, (-1, len(region_logits_VSS)))
            logits = (per_image + region_logits_VSS[:, None]).flatten(0, 1)
        weights = F.dropout(logits.softmax(dim=-1), self.attention_dropout, self.training)
        return weights.to(value.dtype) @ value

    def _position_logits(self) -> Tensor:
        """Bias of every head for every pair of tokens of a window, (n, S, S)."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1).contiguous()


def split_into_windows(x_BhwC: Tensor, window_size: int) -> Tensor:
    """(B, h, w, C) with h, w multiples of M -> (B * V, S, C); windows and their tokens are ordered by row."""
    tiles = x_BhwC.unflatten(2, (-1, window_size)).unflatten(1, (-1, window_size))
    return tiles.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def join_windows(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Inverse of `split_into_windows` for a map of that size."""
    tiles = windows.unflatten(1, (window_size, window_size))
    tiles = tiles.unflatten(0, (-1, height // window_size, width // window_size))
    return tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def relative_position_index(window_size: int) -> Tensor:
    """Row of the bias table for every pair of tokens of a window, (S, S) int64."""
    offset = torch.arange(window_size)
    row_S, column_S = (axis.flatten() for axis in torch.meshgrid(offset, offset, indexing="ij"))
    row_SS = row_S[:, None] - row_S[None] + window_size - 1
    column_SS = column_S[:, None] - column_S[None] + window_size - 1
    return row_SS * (2 * window_size - 1) + column_SS


@cached_constant(max_entries=16)
def shifted_region_logits(height: int, width: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """What to add to the logits of windows on a cyclically shifted map (Sec. 3.2, Fig. 4).

    Returns:
        (V, S, S) float32: 0 between tokens that were neighbors before, else -100. Shared: do not write into it.
    """

    def region(length: int) -> Tensor:
        position = torch.arange(length, device=device)
        return (position >= length - window_size).int() + (position >= length - shift).int()

    region_hw = 3 * region(height)[:, None] + region(width)
    region_VS = split_into_windows(region_hw[None, :, :, None], window_size).squeeze(-1)
    crossing_VSS = region_VS[:, :, None] != region_VS[:, None, :]
    return torch.where(crossing_VSS, CROSS_REGION_LOGIT, 0.0)
