"""Ground truth as the matcher and the criterion read it, made from what a dataset mapper emits."""
# T frames (1 for images), N targets, (H, W) pixels of the padded frame, (h, w) pixels of the image as it was given.

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

from mask2former.packed_masks import PackedMasks

__all__ = ["Target", "ground_truth", "make_target", "sample_name"]


class Target(NamedTuple):
    """The ground truth of one clip; an image is a clip of one frame.

    Attributes:
        labels: (N,) int64 in 0..K-1; in clips also K, an object that counts as "no object".
        masks: (N, T, H, W) bool (or any numeric type in [0, 1]) in the padded frame.
    """

    labels: Tensor
    masks: Tensor


def ground_truth(sample: dict[str, Any]) -> Instances:
    """The annotations of a training sample.

    Raises:
        ValueError: it has none, not even an empty set.
    """
    if "instances" not in sample:
        raise ValueError(
            f"image {sample_name(sample)}: there is no 'instances' to train on; INPUT.DATASET_MAPPER_NAME must name a "
            "mapper that makes it from this dataset's annotations"
        )
    return sample["instances"]


def make_target(
    sample: dict[str, Any],
    *,
    num_classes: int,
    num_frames: int,
    image_size: tuple[int, int],
    padded_size: tuple[int, int],
    device: torch.device,
) -> Target:
    """Check the annotations of a sample, move them to the device and pad their masks with zeros.

    Args:
        sample: `instances` with `gt_classes` (N,) int64 and `gt_masks` (N, h, w), or (N, T, h, w) for a clip, as a
            tensor or, as the training loader sends them, as `PackedMasks`, which are unpacked on the device.
        num_classes: K.
        num_frames: T.
        image_size: (h, w).
        padded_size: (H, W).
        device: where the model is.
    """
    instances = ground_truth(sample)
    labels, masks = instances.gt_classes, instances.gt_masks
    if isinstance(masks, PackedMasks):
        masks = masks.to(device, non_blocking=True).unpack()  # there, not before: an eighth of the transfer
    if not isinstance(masks, Tensor):
        raise ValueError(
            f"image {sample_name(sample)}: gt_masks must be a tensor (N, h, w), got {type(masks).__name__}; "
            "INPUT.DATASET_MAPPER_NAME must name a mapper that makes tensors"
        )
    # The loader left the labels on the CPU: looking at them does not wait for the device.
    highest = num_classes if masks.dim() == 4 else num_classes - 1  # in clips "no object", see INPUT.CLIP_LABELS
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= highest:
        raise ValueError(
            f"image {sample_name(sample)}: labels must be in 0..{highest} "
            f"(MODEL.SEM_SEG_HEAD.NUM_CLASSES={num_classes}), got {sorted(set(labels.tolist()))}"
        )
    masks_NThw = masks.unsqueeze(1) if masks.dim() == 3 else masks
    if masks_NThw.shape != (len(labels), num_frames, *image_size):
        raise ValueError(
            f"image {sample_name(sample)}: {len(labels)} labels in {num_frames} frames of "
            f"{image_size[0]}x{image_size[1]} pixels need gt_masks of that shape, got {tuple(masks.shape)}"
        )
    masks_NThw = masks_NThw.to(device, non_blocking=True)
    padding = (0, padded_size[1] - image_size[1], 0, padded_size[0] - image_size[0])
    masks_NTHW = F.pad(masks_NThw, padding) if any(padding) else masks_NThw
    return Target(labels.to(device, non_blocking=True), masks_NTHW)


def sample_name(sample: dict[str, Any]) -> str:
    """How the user knows a sample: its file (of a clip the first one) and its id, as far as they are known."""
    file_name = sample.get("file_name") or next(iter(sample.get("file_names") or ()), None)
    image_id = sample.get("image_id")
    if file_name is None:
        return "without a name" if image_id is None else f"with image_id {image_id}"
    return str(file_name) if image_id is None else f"{file_name} (image_id {image_id})"
