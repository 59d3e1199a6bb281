"""Results as COCO run lengths (RLE), straight from the tensors of the model."""

# N masks, (H, W) pixels of the result.

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from mask2former.modeling.postprocessing import RunLengthMasks

__all__ = ["encode_label_map", "encode_masks"]


def encode_masks(masks_NHW: Tensor | RunLengthMasks) -> list[dict[str, Any]]:
    """Run lengths of N masks, with text counts as JSON files store them.

    Args:
        masks_NHW: bool, or numbers of which those above 0.5 are inside, on any device; or what they are already.
    """
    if isinstance(masks_NHW, RunLengthMasks):
        return masks_NHW.rles
    if masks_NHW.dim() != 3:
        raise ValueError(f"masks must be (N, H, W), got shape {tuple(masks_NHW.shape)}")
    inside_NHW = masks_NHW if masks_NHW.dtype == torch.bool else masks_NHW > 0.5
    # COCO's run lengths follow columns. Turned around on the device, as bytes, the masks need no further copy:
    # (N, W, H) in C order is (H, W, N) in Fortran order.
    columns_NWH = inside_NHW.transpose(1, 2).contiguous().view(torch.uint8).cpu().numpy()
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
