"""Bilinear resizing as products of matrices that a graph makes from sizes it learns when it runs."""

# (h, w) cells of a map, (H, W) pixels of the result.

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["MapSizes", "resized", "resizing_matrix"]


class MapSizes(NamedTuple):
    """(height, width) in pixels at the places where masks are resized, see `modeling.postprocessing.MaskSizes`.

    While a graph is made these are symbols.
    """

    padded: tuple[int, int]
    image: tuple[int, int]
    output: tuple[int, int]


def resized(maps: Tensor, sizes: MapSizes) -> Tensor:
    """Masks (..., h, w) of the padded frame at the size of the result, as `postprocessing.resized_to_output`.

    Both published steps are linear, so each axis is one matrix, and the map in between does not exist.
    """
    rows, columns = (
        resizing_matrix(image, output, output, maps) @ resizing_matrix(cells, padded, image, maps)
        for cells, padded, image, output in zip(maps.shape[-2:], *sizes, strict=True)
    )
    return rows @ (maps @ columns.T)


def resizing_matrix(cells: int, length: int, num_first: int, like: Tensor) -> Tensor:
    """Weights of bilinear resizing with `align_corners=False`; exactly the identity for equal sizes.

    Args:
        cells, length: of an axis before and after.
        num_first: of the result only so many are wanted.
        like: has the dtype and device of the result.

    Returns:
        (num_first, cells).
    """
    place_L = (torch.arange(num_first, dtype=like.dtype, device=like.device) + 0.5) * cells / length - 0.5
    # Beyond the centers of the outer cells their values go on.
    place_L = torch.minimum(place_L.clamp_min(0), torch.full_like(place_L, cells - 1))
    cell_C = torch.arange(cells, dtype=like.dtype, device=like.device)
    return (1 - (place_L[:, None] - cell_C).abs()).clamp_min(0)
