"""Masks in all the forms data sets store them: COCO polygons, run lengths (RLE), bitmaps and panoptic id pictures.

Everything is NumPy, because mappers run in worker processes. Only `ids_to_masks` sees torch: it makes the targets.
"""

# N masks, (H, W) pixels of the picture the labels belong to.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from mask2former.run_lengths import draw_runs


def rgb_to_id(rgb_HW3: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
    """Segment ids of a panoptic picture: R + 256 G + 65536 B, (H, W) int32."""
    if rgb_HW3.ndim != 3 or rgb_HW3.shape[2] != 3:
        raise ValueError(f"a panoptic picture must be (H, W, 3) RGB, got shape {rgb_HW3.shape}")
    red, green, blue = (rgb_HW3[..., channel].astype(np.int32) for channel in range(3))
    return red + (green << 8) + (blue << 16)


def id_to_rgb(ids_HW: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """The panoptic picture (H, W, 3) uint8 of segment ids in 0..2^24 - 1."""
    return np.stack([(ids_HW >> shift) & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)


def ids_to_masks(ids_HW: NDArray[np.integer[Any]], ids: Sequence[int]) -> Tensor:
    """One mask for each of N ids, in the order given.

    Args:
        ids_HW: integer map, for example of segment ids or of class labels.
        ids: N values; a value that does not occur gives an all-false mask.

    Returns:
        (N, H, W) bool.
    """
    ids_N11 = np.asarray(ids, dtype=ids_HW.dtype).reshape(-1, 1, 1)
    masks_NHW: NDArray[np.bool_] = ids_HW[None] == ids_N11
    return torch.from_numpy(masks_NHW)


def encode_rle(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO run lengths of a (H, W) bool mask, with text counts as JSON files store them."""
    rle = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_segmentations(segmentations: Sequence[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The masks of N COCO annotations, rasterized by COCO's rules; the polygons of one annotation are united.

    Args:
        segmentations: N times a list of polygons [x0, y0, x1, y1, ...] or run lengths (compressed or not).
        size: (H, W) of the picture. Polygons may reach beyond it.

    Returns:
        (N, H, W) bool. A list without polygons gives an all-false mask.
    """
    masks_NHW: NDArray[np.bool_] = np.zeros((len(segmentations), *size), dtype=bool)
    for segmentation, mask_HW in zip(segmentations, masks_NHW, strict=True):
        draw_runs(to_rle(segmentation, size), mask_HW)
    return masks_NHW


def to_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Run lengths, compressed or not, of one COCO annotation; see `decode_segmentations`."""
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon, dtype=np.float64).reshape(-1) for polygon in segmentation]
        short = next((polygon for polygon in polygons if len(polygon) < 6 or len(polygon) % 2), None)
        if short is not None:
            raise ValueError(f"a polygon needs at least three points x, y, got {short.tolist()}")
        if not polygons:
            empty: dict[str, Any] = coco_mask.encode(np.zeros(size, dtype=np.uint8, order="F"))
            return empty
        parts = coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], *size)
        united: dict[str, Any] = parts[0] if len(parts) == 1 else coco_mask.merge(parts)
        return united
    if not isinstance(segmentation, dict):
        raise ValueError(f"segmentation must be polygons or RLE, got {type(segmentation).__name__}")
    if tuple(segmentation["size"]) != tuple(size):
        raise ValueError(f"RLE of (height, width) {tuple(segmentation['size'])} for a picture of {tuple(size)}")
    return segmentation


def mask_to_polygon(mask_HW: NDArray[np.bool_]) -> list[int] | None:
    """The outline of a mask along pixel edges, [x0, y0, x1, y1, ...]; COCO's rules rasterize it back exactly.

    Returns:
        None when one outline cannot describe the mask: it is empty, in several parts, or has a hole.
    """
    padded = np.pad(mask_HW, 1)
    inside_HW = padded[1:-1, 1:-1]
    steps: dict[tuple[int, int], tuple[int, int]] = {}
    num_edges = 0
    # Directed edges with the mask on their right hand: top sides run right, right sides down, and so on.
    for neighbor_HW, start, stop in (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    ):
        rows, columns = (indices.tolist() for indices in np.nonzero(inside_HW & ~neighbor_HW))
        num_edges += len(rows)
        for row, column in zip(rows, columns, strict=True):
            steps[column + start[0], row + start[1]] = (column + stop[0], row + stop[1])
    if not steps or len(steps) < num_edges:  # a corner with two ways on: parts that touch diagonally
        return None
    outline = [next(iter(steps))]
    while (following := steps[outline[-1]]) != outline[0]:
        outline.append(following)
    if len(outline) < num_edges:  # there is a second outline: another part, or a hole
        return None
    # Where the outline runs straight on, its point is no corner.
    before, after = outline[-1:] + outline[:-1], outline[1:] + outline[:1]
    return [
        value
        for (x0, y0), corner, (x2, y2) in zip(before, outline, after, strict=True)
        if x0 != x2 and y0 != y2
        for value in corner
    ]


def tight_boxes(masks_NHW: Tensor) -> Tensor:
    """Boxes (x0, y0, x1, y1), ends exclusive, around (N, H, W) bool masks: (N, 4) float32; zeros for an empty mask."""
    boxes_N4 = torch.zeros(masks_NHW.shape[0], 4)
    for axis, (low, high) in ((1, (0, 2)), (2, (1, 3))):
        occupied_NS = _any(masks_NHW, axis)
        length = occupied_NS.shape[1]
        boxes_N4[:, low] = occupied_NS.float().argmax(dim=1)
        boxes_N4[:, high] = length - occupied_NS.flip(1).float().argmax(dim=1)
        boxes_N4 *= occupied_NS.any(dim=1)[:, None]
    return boxes_N4


def is_visible(masks_NHW: Tensor) -> Tensor:
    """(N,) bool: which of (N, H, W) bool masks have any pixel."""
    return _any(masks_NHW.flatten(1), 1)


def _any(values: Tensor, dim: int) -> Tensor:
    # On CPU torch's `any` is twenty times slower than the maximum of the same bytes.
    return values.view(torch.uint8).amax(dim).bool()
