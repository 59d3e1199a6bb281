"""The base of all mappers: read a picture, change it at random, pad it, and put its targets into `Instances`."""

# N segments, h, w pixels of the sample.

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Instances
from numpy.typing import NDArray
from torch import Tensor

from mask2former.data.augmentation import IMAGE_PADDING, build_test_augmentations
from mask2former.data.dataset_mappers.targets import FrameLabels, Record, Targets
from mask2former.data.masks import is_visible
from mask2former.data.reading import check_size, read_image, read_size
from mask2former.data.undecoded_picture import UndecodedPicture

#: What a record says about labels; a sample does not carry it on.
_LABEL_KEYS = ("annotations", "sem_seg_file_name", "pan_seg_file_name")


class ImageMapper:
    """A record in, the sample without targets out: the mapper of all tests."""

    @configurable
    def __init__(self, *, augmentations: list[T.Augmentation], image_format: str) -> None:
        """
        Args:
            augmentations: applied in this order.
            image_format: order of the channels, "RGB" or "BGR".
        """
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = False) -> dict[str, Any]:
        if is_train:
            raise ValueError(f"{cls.__name__} makes no targets: choose INPUT.DATASET_MAPPER_NAME for training")
        return {"augmentations": build_test_augmentations(cfg), "image_format": cfg.INPUT.FORMAT}

    def __call__(self, record: Record) -> Record:
        """
        Returns:
            The record (itself unchanged) without its label files, with `image`, a (3, h, w) uint8 tensor, and with
            `height` and `width` of the picture as it is stored.
        """
        image_HW3 = self.read_image(record)
        augmented = T.AugInput(image_HW3)
        self.augmentations(augmented)
        return {**self.start_sample(record, image_HW3.shape[:2]), "image": to_tensor(augmented.image)}

    def resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the sample of a picture of (height, width) `size`, where nothing is random."""
        shape_only = np.broadcast_to(np.uint8(0), (*size, 3))
        for augmentation in self.augmentations.augs:
            transform = augmentation.get_transform(shape_only)
            if isinstance(transform, T.ResizeTransform):
                shape_only = np.broadcast_to(np.uint8(0), (transform.new_h, transform.new_w, 3))
        return shape_only.shape[0], shape_only.shape[1]

    def read_image(self, record: Record) -> NDArray[np.uint8]:
        """The picture; its size must be the one in the record, if there is one."""
        image_HW3 = read_image(record["file_name"], self.image_format)
        self.check_size(record, image_HW3.shape)
        return image_HW3

    @staticmethod
    def check_size(record: Record, size: tuple[int, ...]) -> None:
        """Raises BrokenSampleError when a picture does not have the size of its record."""
        if "height" in record and "width" in record:
            check_size(record["file_name"], size, (record["height"], record["width"]), "its annotation")

    @staticmethod
    def start_sample(record: Record, size: tuple[int, int]) -> Record:
        """The record without label files, and with the stored size, to which results will be resized."""
        sample = {key: value for key, value in record.items() if key not in _LABEL_KEYS}
        return {**sample, "height": size[0], "width": size[1]}


class SegmentationMapper(ImageMapper, ABC):
    """The base of the training mappers; a subclass says how labels are read and which augmentations it takes."""

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: list[T.Augmentation],
        image_format: str,
        num_classes: int,
        size_divisibility: int = -1,
        ignore_label: int = 255,
        crop_ignore_label: int | None = None,
        drop_empty_masks: bool = False,
        has_fixed_size: bool = False,
        reduced_decoding: bool = False,
    ) -> None:
        """
        Args:
            is_train: False gives samples without targets.
            num_classes: classes of the model; labels must be 0..num_classes-1.
            size_divisibility: samples are padded at the right and the bottom to a multiple of this; <= 0 pads nothing.
            ignore_label: value of semantic labels that stands for "no class".
            crop_ignore_label: crops look at classes, and this one does not count; None: no crop looks at classes.
            drop_empty_masks: leave out segments that a crop removed, instead of keeping them as empty targets.
            has_fixed_size: all samples have the same size, so batches need not be grouped by shape.
            reduced_decoding: decode JPEG files at 1/2, 1/4 or 1/8 of their size where the augmentations shrink them as
                much; pixels then differ a little from those of the whole picture shrunk.
        """
        super().__init__(augmentations=augmentations, image_format=image_format)
        self.is_train = is_train
        self.num_classes = num_classes
        self.size_divisibility = size_divisibility
        self.ignore_label = ignore_label
        self.crop_ignore_label = crop_ignore_label
        self.drop_empty_masks = drop_empty_masks
        self.has_fixed_size = has_fixed_size
        self.reduced_decoding = reduced_decoding

    @abstractmethod
    def read_labels(self, record: Record, size: tuple[int, int]) -> FrameLabels | None:
        """The labels of a picture of (height, width) `size`; None when the record has none and none are needed."""

    def __call__(self, record: Record) -> Record:
        """
        Returns:
            The record (itself unchanged) without its label files, with
            `image`: (3, h, w) uint8 tensor;
            `instances`: `Instances` with `gt_classes` (N,) int64 and `gt_masks` (N, h, w), a plain bool tensor;
            `sem_seg`: (h, w) int64 tensor, when a semantic label file was read;
            `height`, `width`: size of the picture as it is stored.
        """
        if not self.is_train:
            return super().__call__(record)
        if self.reduced_decoding:
            size = read_size(record["file_name"])
            self.check_size(record, size)
            labels = self.read_labels(record, size)
            class_map_HW = None if labels is None else labels.class_map_HW
            augmented = UndecodedPicture(record["file_name"], self.image_format, size, class_map_HW)
            transforms = self.augmentations(augmented)
            image_hw3 = augmented.decoded()
        else:
            image_HW3 = self.read_image(record)
            size = image_HW3.shape[:2]
            labels = self.read_labels(record, size)
            augmented = T.AugInput(image_HW3, sem_seg=None if labels is None else labels.class_map_HW)
            transforms = self.augmentations(augmented)
            image_hw3 = augmented.image
        sample = self.start_sample(record, size)
        sample["image"] = self._pad(to_tensor(image_hw3), IMAGE_PADDING)
        if labels is None:
            return sample
        if "sem_seg_file_name" in record and augmented.sem_seg is not None:
            sample["sem_seg"] = self._pad(torch.from_numpy(augmented.sem_seg.astype(np.int64)), self.ignore_label)
        sample["instances"] = self.make_instances(labels.targets(transforms, augmented))
        return sample

    def make_instances(self, targets: Targets) -> Instances:
        """Targets, padded like the image, in the form that the model reads."""
        if self.drop_empty_masks:
            kept_N = is_visible(targets.masks)
            if not kept_N.all():
                targets = Targets(targets.classes[kept_N], targets.masks[kept_N])
        masks_Nhw = self._pad(targets.masks, False)
        instances = Instances(tuple(masks_Nhw.shape[-2:]))
        instances.gt_classes = targets.classes
        instances.gt_masks = masks_Nhw
        return instances

    def _pad(self, values: Tensor, fill: float) -> Tensor:
        """Pads the last two axes at their ends."""
        divisor = self.size_divisibility
        height, width = values.shape[-2:]
        # With crops of at most `divisor` pixels, as in all published files, this is a square of exactly that side. The
        # original cut larger pictures down to that square without a word; here they are padded to the next multiple.
        if divisor <= 0 or (height % divisor == 0 and width % divisor == 0):
            return values
        return F.pad(values, (0, -width % divisor, 0, -height % divisor), value=fill)


def to_tensor(image_hw3: NDArray[np.uint8]) -> Tensor:
    """(h, w, 3) array -> contiguous (3, h, w) tensor."""
    return torch.from_numpy(np.ascontiguousarray(image_hw3.transpose(2, 0, 1)))
