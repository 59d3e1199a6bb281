"""Pictures of what a data set says, and of what training makes of it."""

# N segments, H, W pixels of the picture as it is stored, h, w after augmentation and padding.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from detectron2.data import Metadata
from numpy.typing import NDArray
from torch import Tensor

from mask2former.data.masks import decode_segmentations, rgb_to_id
from mask2former.data.reading import read_class_map, read_image, read_panoptic_ids
from mask2former.packed_masks import unpacked
from mask2former.visualization import draw_instances, draw_panoptic, draw_semantic, strip

__all__ = ["LabelForm", "draw_record", "draw_sample", "draw_truth", "spread"]

#: The entry of a record in which each form of labels is found.
LabelForm = Literal["pan_seg_file_name", "annotations", "sem_seg_file_name"]
_FORMS: tuple[LabelForm, ...] = ("pan_seg_file_name", "annotations", "sem_seg_file_name")
#: Of a clip this many frames are drawn.
_NUM_FRAMES = 4

Item = TypeVar("Item")


def draw_truth(
    image: NDArray[np.uint8], record: Mapping[str, Any], metadata: Metadata, *, form: LabelForm | None = None
) -> NDArray[np.uint8]:
    """Draws the ground truth of a record: panoptic if it has that, else instances, else semantic classes.

    Args:
        image: (H, W, 3) uint8 RGB, the picture of the record.
        record: in Detectron2's format; its label pictures are read.
        metadata: of the record's dataset.
        form: labels to draw rather than others, if the record has them.

    Raises:
        ValueError: the record has no ground truth.
    """
    found = next((key for key in (form, *_FORMS) if key is not None and key in record), None)
    if found == "pan_seg_file_name":
        panoptic_map = rgb_to_id(read_panoptic_ids(record["pan_seg_file_name"]))
        return draw_panoptic(image, panoptic_map, record["segments_info"], metadata)
    if found == "annotations":
        annotations = [entry for entry in record["annotations"] if not entry.get("iscrowd", 0)]
        size = (image.shape[0], image.shape[1])
        masks = decode_segmentations([entry["segmentation"] for entry in annotations], size)
        return draw_instances(image, masks, [entry["category_id"] for entry in annotations], metadata)
    if found == "sem_seg_file_name":
        return draw_semantic(image, read_class_map(record["sem_seg_file_name"]), metadata)
    raise ValueError(f"{record['file_name']} has no ground truth to draw (keys: {', '.join(sorted(record))})")


def draw_record(record: Mapping[str, Any], metadata: Metadata) -> NDArray[np.uint8]:
    """The picture of a record beside its ground truth; of a clip, some frames with theirs.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    if "file_names" in record:
        frames = [
            {"file_name": file_name, "annotations": annotations}
            for file_name, annotations in zip(record["file_names"], record["annotations"], strict=True)
        ]
        return strip([draw_truth(_read(frame), frame, metadata) for frame in spread(frames, _NUM_FRAMES)])
    image = _read(record)
    return strip([image, draw_truth(image, record, metadata)], ["image", "truth"])


def draw_sample(sample: Mapping[str, Any], metadata: Metadata, image_format: str) -> NDArray[np.uint8]:
    """A sample as a training mapper makes it: the padded picture, its targets, and its semantic labels if it has some.

    Of a clip, the targets in each of its frames.

    Args:
        sample: `image` (3, h, w) uint8 or a list of T frames; `instances` with `gt_classes` and `gt_masks` (N, h, w),
            of a clip (N, T, h, w), packed or not, or nothing (a sample without labels); `sem_seg` (h, w) or nothing.
        metadata: of the training dataset.
        image_format: order of the channels, INPUT.FORMAT.

    Returns:
        (h', w', 3) uint8 RGB.
    """
    if image_format not in ("RGB", "BGR"):
        raise ValueError(f"INPUT.FORMAT={image_format!r} cannot be drawn; choose from: RGB, BGR")
    if isinstance(sample["image"], list):
        classes_N, masks_NThw = sample["instances"].gt_classes.numpy(), unpacked(sample["instances"].gt_masks).numpy()
        frames = [_to_rgb(frame, image_format) for frame in sample["image"]]
        return strip(
            [draw_instances(frame, masks_NThw[:, t], classes_N, metadata) for t, frame in enumerate(frames)],
            [f"frame {number}" for number in sample.get("frame_indices", range(len(frames)))],
        )
    image_hw3 = _to_rgb(sample["image"], image_format)
    panels = {"image": image_hw3}
    if "instances" in sample:
        panels["targets"] = _draw_targets(image_hw3, sample, metadata)
    if "sem_seg" in sample:
        panels["semantic labels"] = draw_semantic(image_hw3, sample["sem_seg"].numpy(), metadata)
    return strip(list(panels.values()), list(panels))


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """`count` items spread over a list, or all of them if it has fewer."""
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[index] for index in chosen]


def _to_rgb(image_3hw: Tensor, image_format: str) -> NDArray[np.uint8]:
    image_hw3 = image_3hw.numpy().transpose(1, 2, 0)
    return np.ascontiguousarray(image_hw3 if image_format == "RGB" else image_hw3[..., ::-1])


def _read(record: Mapping[str, Any]) -> NDArray[np.uint8]:
    return read_image(record["file_name"], "RGB")


def _draw_targets(image_hw3: NDArray[np.uint8], sample: Mapping[str, Any], metadata: Metadata) -> NDArray[np.uint8]:
    """Segments of panoptic and semantic labels, which do not overlap, as a panoptic map; others as instances."""
    instances = sample["instances"]
    masks_Nhw, classes_N = unpacked(instances.gt_masks).numpy(), instances.gt_classes.numpy()
    if "segments_info" not in sample and "sem_seg" not in sample:
        return draw_instances(image_hw3, masks_Nhw, classes_N, metadata)
    is_thing = {segment["category_id"]: segment.get("isthing", True) for segment in sample.get("segments_info", ())}
    map_hw = np.zeros(image_hw3.shape[:2], dtype=np.int32)  # 0 is void, n the n-th segment
    info = []
    for number, (category, mask_hw) in enumerate(zip(classes_N.tolist(), masks_Nhw, strict=True), start=1):
        map_hw[mask_hw] = number
        info.append({"id": number, "category_id": category, "isthing": is_thing.get(category, False)})
    return draw_panoptic(image_hw3, map_hw, info, metadata)
