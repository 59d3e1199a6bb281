"""Multi-scale deformable attention as a layer (Deformable DETR, arXiv:2010.04159, Sec. 4.1)."""
# B batch, S value tokens of all levels, T query tokens, C channels, n heads, d = C / n, L levels, K points.

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...constants import cached_constant
from .arguments import level_sizes
from .functional import ms_deform_attn

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
        weights = self.attention_weights(query).unflatten(-1, (self.n_heads, -1)).softmax(dim=-1)
        locations = self._sampling_locations(self.sampling_offsets(query), reference_points, sizes)
        read_BTC = ms_deform_attn(
            value_BSC.unflatten(-1, (self.n_heads, -1)),
            sizes,
            locations,
            weights.unflatten(-1, (self.n_levels, self.n_points)),
        )
        return self.output_proj(read_BTC)

    def _sampling_locations(self, offsets: Tensor, reference_points: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """Offsets (B, T, n * L * K * 2), in cells or relative to boxes -> (B, T, n, L, K, 2) in [0, 1]."""
        dtype = reference_points.dtype  # stays float32 when autocast makes the offsets half precision
        offsets_BTnLK2 = offsets.to(dtype).unflatten(-1, (self.n_heads, self.n_levels, self.n_points, 2))
        reference_BT1L1R = reference_points[:, :, None, :, None]
        if reference_points.shape[-1] == 2:
            return reference_BT1L1R + offsets_BTnLK2 * cell_sizes(tuple(sizes), dtype, offsets.device)[:, None]
        if reference_points.shape[-1] == 4:
            return reference_BT1L1R[..., :2] + offsets_BTnLK2 * (reference_BT1L1R[..., 2:] * (0.5 / self.n_points))
        raise ValueError(f"reference_points must end in 2 or 4 coordinates, got {tuple(reference_points.shape)}")


@cached_constant(max_entries=16)
def cell_sizes(sizes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(width, height) of one cell of every level as a share of the map, (L, 2). Shared: do not write into it."""
    return torch.tensor([(1 / width, 1 / height) for height, width in sizes], dtype=dtype, device=device)
