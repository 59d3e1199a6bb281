"""Points that do not change from call to call, so that losses of different batches can be compared."""

from __future__ import annotations

import torch
from torch import Tensor


def fixed_points(num_maps: int, num_points: int, device: torch.device) -> Tensor:
    """A `PointSource`: the same points for every map and every call."""
    generator = torch.Generator().manual_seed(num_points)
    return torch.rand(1, num_points, 2, generator=generator).expand(num_maps, -1, -1).to(device)
