"""Results as COCO run lengths (RLE), straight from the tensors of the model."""

# N masks, (H, W) pixels of the result.

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from mask2former.modeling.postprocessing import RunLengthMasks

__all__ = ["PackedColumns", "RunLengths", "encode_columns", "encode_label_map", "encode_masks", "pack_columns"]


class PackedColumns(NamedTuple):
    """N masks at one bit per pixel, for the way to another process."""

    bits: NDArray[np.uint8]  # (N, W, ceil(H / 8)), the first of eight pixels of a column in the highest bit
    height: int  # H


RunLengths = list[dict[str, Any]]


def encode_masks(masks_NHW: Tensor | RunLengthMasks) -> RunLengths:
    """Run lengths of N masks, with text counts as JSON files store them.

    Args:
        masks_NHW: bool, or numbers of which those above 0.5 are inside, on any device; or what they are already.
    """
    return encode_columns(pack_columns(masks_NHW))


def pack_columns(masks_NHW: Tensor | RunLengthMasks) -> PackedColumns | RunLengths:
    """The masks for `encode_columns`; arguments as for `encode_masks`. Run lengths stay what they are."""
    if isinstance(masks_NHW, RunLengthMasks):
        return masks_NHW.rles
    if masks_NHW.dim() != 3:
        raise ValueError(f"masks must be (N, H, W), got shape {tuple(masks_NHW.shape)}")
    inside_NHW = masks_NHW if masks_NHW.dtype == torch.bool else masks_NHW > 0.5
    # COCO's run lengths follow columns: the masks are turned around, on the device.
    columns_NWH = inside_NHW.transpose(1, 2).contiguous().cpu().numpy()
    return PackedColumns(np.packbits(columns_NWH, axis=-1), inside_NHW.shape[1])


def encode_columns(masks: PackedColumns | RunLengths) -> RunLengths:
    """Run lengths of N masks; NumPy alone, so that it may run in a copied process."""
    if isinstance(masks, list):
        return masks
    # (N, W, H) in C order is (H, W, N) in Fortran order, which pycocotools wants.
    columns_NWH = np.unpackbits(masks.bits, axis=-1, count=masks.height)
    return [_with_text(rle) for rle in coco_mask.encode(columns_NWH.transpose(2, 1, 0))]


def encode_label_map(labels_HW: NDArray[np.integer[Any]]) -> dict[int, dict[str, Any]]:
    """Run lengths of the area of each label that occurs, by label, ascending."""
    labels_WH = np.ascontiguousarray(labels_HW.T)
    return {
        int(label): _with_text(coco_mask.encode((labels_WH == label).view(np.uint8).T))
        for label in np.unique(labels_WH)
    }


def _with_text(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
