"""Results as COCO run lengths (RLE), straight from the tensors of the model."""

# N masks, (H, W) pixels of the result, B bytes of a row.

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from mask2former.modeling.postprocessing import RunLengthMasks
from mask2former.run_lengths import encode_rows

__all__ = ["PackedRows", "RunLengths", "encode_label_map", "encode_masks", "encode_packed", "pack_rows"]


class PackedRows(NamedTuple):
    """N masks at one bit per pixel, for the way to another process."""

    bits: NDArray[np.uint8]  # (N, H, ceil(W / 8)), the first of eight pixels of a row in the highest bit
    width: int  # W


RunLengths = list[dict[str, Any]]


def encode_masks(masks_NHW: Tensor | RunLengthMasks) -> RunLengths:
    """Run lengths of N masks, with text counts as JSON files store them.

    Args:
        masks_NHW: bool, or numbers of which those above 0.5 are inside, on any device; or what they are already.
    """
    return encode_packed(pack_rows(masks_NHW))


def pack_rows(masks_NHW: Tensor | RunLengthMasks) -> PackedRows | RunLengths:
    """The masks for `encode_packed`; arguments as for `encode_masks`. Run lengths stay what they are."""
    if isinstance(masks_NHW, RunLengthMasks):
        return masks_NHW.rles
    if masks_NHW.dim() != 3:
        raise ValueError(f"masks must be (N, H, W), got shape {tuple(masks_NHW.shape)}")
    inside_NHW = masks_NHW if masks_NHW.dtype == torch.bool else masks_NHW > 0.5
    return PackedRows(np.packbits(inside_NHW.cpu().numpy(), axis=-1), inside_NHW.shape[2])


def encode_packed(masks: PackedRows | RunLengths) -> RunLengths:
    """Run lengths of N masks; NumPy alone, so that it may run in a copied process."""
    if isinstance(masks, list):
        return masks
    return [encode_rows(bits_HB, masks.width) for bits_HB in masks.bits]


def encode_label_map(labels_HW: NDArray[np.integer[Any]]) -> dict[int, dict[str, Any]]:
    """Run lengths of the area of each label that occurs, by label, ascending."""
    labels_WH = np.ascontiguousarray(labels_HW.T)
    return {
        int(label): _with_text(coco_mask.encode((labels_WH == label).view(np.uint8).T))
        for label in np.unique(labels_WH)
    }


def _with_text(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
