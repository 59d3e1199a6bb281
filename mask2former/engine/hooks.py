"""What the trainer does beside training: pictures for TensorBoard."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.engine import HookBase
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mask2former.packed_masks import unpacked
from mask2former.visualization import draw_instances, draw_panoptic, draw_prediction, draw_semantic, strip

__all__ = ["ExamplePictures", "draw_truth"]


class ExamplePictures(HookBase):
    """Every `period` steps and after the last: image | truth | prediction of samples in the current batch (on rank 0).

    The samples are what the model sees in training, after augmentation, so these pictures also show wrong labels and
    wrong augmentations.
    """

    def __init__(self, *, period: int, metadata: Metadata, num_pictures: int = 2) -> None:
        self._period = period
        self._metadata = metadata
        self._num_pictures = num_pictures

    def after_step(self) -> None:
        step = self.trainer.iter + 1
        if step % self._period == 0 or step == self.trainer.max_iter:
            for index, sample in enumerate(self.trainer._trainer.last_batch[: self._num_pictures]):
                if torch.is_tensor(sample["image"]) and sample["image"].shape[0] == 3 and "instances" in sample:
                    picture = self._picture(sample)
                    self.trainer.storage.put_image(f"example_{index}", torch.from_numpy(picture).permute(2, 0, 1))

    def _picture(self, sample: dict[str, Any]) -> NDArray[np.uint8]:
        model: nn.Module = self.trainer.model
        model = model.module if isinstance(model, DistributedDataParallel) else model
        image_CHW = sample["image"]
        size = {"height": image_CHW.shape[1], "width": image_CHW.shape[2]}
        model.eval()
        with torch.no_grad():
            (prediction,) = model([{"image": image_CHW, **size}])
        model.train()
        image_HWC = image_CHW.permute(1, 2, 0).cpu().numpy().astype(np.uint8)
        return strip(
            [
                image_HWC,
                draw_truth(image_HWC, sample["instances"], self._metadata, prediction),
                draw_prediction(image_HWC, prediction, self._metadata),
            ],
            ["image", "truth", "prediction"],
        )


def draw_truth(
    image: NDArray[np.uint8], instances: Any, metadata: Metadata, prediction: dict[str, Any]
) -> NDArray[np.uint8]:
    """Draw training targets in the manner of `draw_prediction`: panoptic, instance or semantic as the model predicts.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: `gt_classes` (N,) and `gt_masks` (N, H, W), packed or not.
        metadata: of the training dataset.
        prediction: what the model returned for this image; only its keys are read.
    """
    classes = instances.gt_classes.cpu().numpy()
    masks = np.asarray(unpacked(instances.gt_masks).cpu().numpy(), dtype=bool)
    if "panoptic_seg" in prediction:
        thing_ids = set(metadata.get("thing_dataset_id_to_contiguous_id", {}).values())
        panoptic_map = np.zeros(image.shape[:2], dtype=np.int32)
        segments = []
        for index, category in enumerate(classes.tolist(), start=1):
            panoptic_map[masks[index - 1]] = index
            segments.append({"id": index, "category_id": category, "isthing": category in thing_ids})
        return draw_panoptic(image, panoptic_map, segments, metadata)
    if "instances" in prediction:
        return draw_instances(image, masks, classes, metadata)
    label_map = np.full(image.shape[:2], -1, dtype=np.int64)
    for mask, category in zip(masks, classes.tolist(), strict=True):
        label_map[mask] = category
    return draw_semantic(image, label_map, metadata)
