"""Multi-scale deformable attention as a layer (Deformable DETR, arXiv:2010.04159, Sec. 4.1)."""
# B batch, S value tokens of all levels, T query tokens, C channels, n heads, d = C / n, L levels, K points.

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .arguments import level_sizes
from .functional import fused_ms_deform_attn, ms_deform_attn

__all__ = ["MSDeformAttn"]


class MSDeformAttn(nn.Module):
    """Queries predict where to look and how much each place counts, then read there.

    Argument names and order are those of the published module, which other projects construct themselves.
    """

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4) -> None:
        """Args:
        d_model: C.
        n_points: K, points per level and head.
        """
        super().__init__()
        if d_model % n_heads:
            raise ValueError(
                f"d_model={d_model} (MODEL.SEM_SEG_HEAD.CONVS_DIM) must be divisible by n_heads={n_heads} "
                "(MODEL.MASK_FORMER.NHEADS)"
            )
        self.d_model = d_model
        self.n_levels = n_levels
        self.n_heads = n_heads
        self.n_points = n_points
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start by reading n directions, one per head, at 1..K cells' distance, with equal weights."""
        angle_n = torch.arange(self.n_heads, dtype=torch.float32) * (2 * math.pi / self.n_heads)
        direction_n2 = torch.stack([angle_n.cos(), angle_n.sin()], dim=-1)
        direction_n2 = direction_n2 / direction_n2.abs().amax(dim=-1, keepdim=True)
        distance_K = torch.arange(1, self.n_points + 1, dtype=torch.float32)
        offset_nLK2 = (direction_n2[:, None, None] * distance_K[:, None]).expand(-1, self.n_levels, -1, -1)
        with torch.no_grad():
            nn.init.zeros_(self.sampling_offsets.weight)
            self.sampling_offsets.bias.copy_(offset_nLK2.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor | Sequence[Sequence[int]],
        input_level_start_index: Tensor | None = None,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, T, C).
            reference_points: (B or 1, T, L, 2) points (x, y), or (B or 1, T, L, 4) boxes (center x, center y, width,
                height), in [0, 1] of each level.
            input_flatten: (B, S, C), the tokens of all levels that are read.
            input_spatial_shapes: (height, width) of every level; a list avoids a device transfer.
            input_level_start_index: not needed, as it follows from the shapes; taken so that published calls work.
            input_padding_mask: (B, S) bool, True where tokens are padding and read as zeros.

        Returns:
            (B, T, C).
        """
        sizes = level_sizes(input_spatial_shapes)
        if len(sizes) != self.n_levels:
            raise ValueError(f"input_spatial_shapes must have {self.n_levels} levels, got {sizes}")
        value_BSC = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value_BSC = value_BSC.masked_fill(input_padding_mask.unsqueeze(-1), 0.0)
        value_BSnd = value_BSC.unflatten(-1, (self.n_heads, -1))
        points = (self.n_heads, self.n_levels, self.n_points)
        offsets_BTnLK2 = self.sampling_offsets(query).unflatten(-1, (*points, 2))
        logits_BTnLK = self.attention_weights(query).unflatten(-1, points)
        if reference_points.shape[-1] == 2:
            read_BTC = fused_ms_deform_attn(value_BSnd, sizes, reference_points, offsets_BTnLK2, logits_BTnLK)
        elif reference_points.shape[-1] == 4:
            boxes_BT1L14 = reference_points[:, :, None, :, None]
            half_sizes = boxes_BT1L14[..., 2:] * (0.5 / self.n_points)
            locations = boxes_BT1L14[..., :2] + offsets_BTnLK2 * half_sizes
            weights_BTnLK = logits_BTnLK.flatten(-2).softmax(dim=-1).view_as(logits_BTnLK)
            read_BTC = ms_deform_attn(value_BSnd, sizes, locations, weights_BTnLK)
        else:
            raise ValueError(f"reference_points must end in 2 or 4 coordinates, got {tuple(reference_points.shape)}")
        return self.output_proj(read_BTC)
