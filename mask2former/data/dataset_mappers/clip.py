"""Clips of videos: frames drawn from a video, or made of one picture, changed alike and with targets that live in time.

A clip has one list of transforms, drawn once for all of its frames (arXiv:2112.10764, Sec. 4.1).
"""

# T frames of a clip, N objects seen in any of them, H, W pixels of the frames as stored, h, w after the transforms.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Instances
from numpy.typing import NDArray
from torch import Tensor

from mask2former.data.augmentation import IMAGE_PADDING, build_clip_augmentations, build_test_augmentations
from mask2former.data.dataset_mappers.base import ImageMapper, to_tensor
from mask2former.data.dataset_mappers.targets import InstanceLabels, Record, check_classes
from mask2former.data.masks import is_visible
from mask2former.data.reading import BrokenSampleError, check_size
from mask2former.registry import register_mapper

__all__ = ["ClipMapper", "CocoClipDatasetMapper", "JointClipDatasetMapper", "YTVISDatasetMapper", "draw_frames"]

CLIP_LABELS = ("last_frame", "any_frame")


def draw_frames(length: int, count: int, *, frame_range: int, with_replacement: bool, shuffle: bool) -> list[int]:
    """The frames of a training clip: a reference frame, drawn uniformly, and others near it.

    Args:
        length: frames of the video.
        count: T.
        frame_range: the others lie at most this many frames from the reference.
        with_replacement: a frame may come twice, as published; otherwise only where there are too few.
        shuffle: in random order instead of that of time.
    """
    reference = int(np.random.randint(length))
    near = [
        index
        for index in range(max(0, reference - frame_range), min(length, reference + frame_range + 1))
        if index != reference
    ]
    if not near:  # a video of one frame stands still
        return [reference] * count
    others = np.random.choice(near, count - 1, replace=with_replacement or len(near) < count - 1)
    frames = [reference, *others.tolist()]
    if shuffle:
        np.random.shuffle(frames)
        return frames
    return sorted(frames)


class ClipMapper(ImageMapper):
    """A video in, all of its frames out: the mapper of tests of video models."""

    def __call__(self, record: Record) -> Record:
        """
        Returns:
            The record (itself unchanged) without its annotations, with `image`, a list of (3, h, w) uint8 tensors.
        """
        self._require_frames(record)
        frames = self._read_frames(record, range(len(record["file_names"])))
        transforms = self.augmentations(T.AugInput(frames[0]))
        images = [to_tensor(transforms.apply_image(frame)) for frame in frames]
        return {**self.start_sample(record, frames[0].shape[:2]), "image": images}

    @staticmethod
    def _require_frames(record: Record) -> None:
        if "file_names" not in record:
            raise ValueError(
                f"{record['file_name']} is a picture, and INPUT.DATASET_MAPPER_NAME 'ytvis_clip' takes videos: choose "
                "'joint_clip', which takes both"
            )
        if not record["file_names"]:
            raise BrokenSampleError(f"video {record.get('video_id')!r} has no frames")

    def _read_frames(self, record: Record, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Frames as stored, all of the size of the video."""
        names = [record["file_names"][index] for index in indices]
        frames = [self.read_image({**record, "file_name": name}) for name in names]
        for name, frame in zip(names, frames, strict=True):
            check_size(name, frame.shape, frames[0].shape[:2], names[0])
        return frames


@register_mapper("ytvis_clip")
class YTVISDatasetMapper(ClipMapper):
    """A random clip of a video with its objects."""

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: list[T.Augmentation],
        image_format: str,
        num_classes: int,
        num_frames: int,
        frame_range: int = 20,
        shuffle: bool = False,
        with_replacement: bool = True,
        clip_labels: str = "last_frame",
    ) -> None:
        """
        Args:
            is_train: False gives all frames, without targets.
            num_classes: K, classes of the model.
            num_frames: T.
            frame_range, shuffle, with_replacement: see `draw_frames`.
            clip_labels: "last_frame": an object that the last frame lacks is labeled K, "no object", as the published
                models were trained; "any_frame": every object has its class.
        """
        super().__init__(augmentations=augmentations, image_format=image_format)
        if num_frames < 1:
            raise ValueError(f"INPUT.SAMPLING_FRAME_NUM must be at least 1, got {num_frames}")
        if clip_labels not in CLIP_LABELS:
            raise ValueError(f"INPUT.CLIP_LABELS={clip_labels!r} is unknown; choose from {', '.join(CLIP_LABELS)}")
        self.is_train = is_train
        self.num_classes = num_classes
        self.num_frames = num_frames
        self.frame_range = frame_range
        self.shuffle = shuffle
        self.with_replacement = with_replacement
        self.clip_labels = clip_labels

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        return {
            "is_train": is_train,
            "augmentations": build_clip_augmentations(cfg) if is_train else build_test_augmentations(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "num_frames": cfg.INPUT.SAMPLING_FRAME_NUM,
            "frame_range": cfg.INPUT.SAMPLING_FRAME_RANGE,
            "shuffle": cfg.INPUT.SAMPLING_FRAME_SHUFFLE,
            "with_replacement": cfg.INPUT.SAMPLING_WITH_REPLACEMENT,
            "clip_labels": cfg.INPUT.CLIP_LABELS,
        }

    def __call__(self, record: Record) -> Record:
        """
        Returns:
            While training, the record (itself unchanged) without its annotations, with `image`, a list of T (3, h, w)
            uint8 tensors, `frame_indices`, and `instances` with `gt_classes` (N,) int64, `gt_ids` (N,) int64 and
            `gt_masks` (N, T, h, w) bool, all-false in frames that lack the object.
        """
        if not self.is_train:
            return super().__call__(record)
        self._require_frames(record)
        indices = draw_frames(
            len(record["file_names"]),
            self.num_frames,
            frame_range=self.frame_range,
            with_replacement=self.with_replacement,
            shuffle=self.shuffle,
        )
        frames = self._read_frames(record, indices)
        size = frames[0].shape[:2]
        transforms = self.augmentations(T.AugInput(frames[0]))
        frames = [transforms.apply_image(frame) for frame in frames]
        annotations = [record["annotations"][index] for index in indices]
        names = [record["file_names"][index] for index in indices]
        sample = {
            **self.start_sample(record, size),
            "image": [to_tensor(frame) for frame in frames],
            "frame_indices": indices,
        }
        sample["instances"] = self._instances(annotations, names, size, transforms, T.AugInput(frames[0]))
        return sample

    def _instances(
        self,
        annotations: Sequence[Sequence[Record]],
        names: Sequence[str],
        size: tuple[int, int],
        transforms: T.TransformList,
        augmented: T.AugInput,
    ) -> Instances:
        objects_T = [[entry for entry in frame if not entry.get("iscrowd", 0)] for frame in annotations]
        class_of = {entry["id"]: entry["category_id"] for frame in objects_T for entry in frame}
        place_of = {identifier: place for place, identifier in enumerate(class_of)}
        check_classes(list(class_of.values()), self.num_classes, names[0])
        masks_NThw = torch.zeros(len(class_of), len(annotations), *augmented.image.shape[:2], dtype=torch.bool)
        for frame, (objects, name) in enumerate(zip(objects_T, names, strict=True)):
            masks_Mhw = InstanceLabels(name, objects, size).targets(transforms, augmented).masks
            masks_NThw[[place_of[entry["id"]] for entry in objects], frame] = masks_Mhw
        classes = list(class_of.values())
        if self.clip_labels == "last_frame":
            in_last = {entry["id"] for entry in objects_T[-1]}
            classes = [value if key in in_last else self.num_classes for key, value in class_of.items()]
        return _visible_instances(classes, list(class_of), masks_NThw)


@register_mapper("coco_clip")
class CocoClipDatasetMapper(YTVISDatasetMapper):
    """A picture as a clip: every frame is the same picture, changed in its own way, as if the camera had moved."""

    def __call__(self, record: Record) -> Record:
        """As `YTVISDatasetMapper`; objects are numbered by the order of their annotations."""
        if "file_name" not in record:
            raise ValueError(
                f"video {record.get('video_id')!r} is no picture, as INPUT.DATASET_MAPPER_NAME 'coco_clip' takes them: "
                "choose 'joint_clip', which takes both"
            )
        if not self.is_train:
            return ImageMapper.__call__(self, record)
        image_HW3 = self.read_image(record)
        size = image_HW3.shape[:2]
        labels = InstanceLabels.read({"annotations": [], **record}, size, num_classes=self.num_classes)
        classes = [entry["category_id"] for entry in labels.annotations]
        images, masks = [], []
        for _ in range(self.num_frames):
            augmented = T.AugInput(image_HW3)
            transforms = self.augmentations(augmented)
            images.append(to_tensor(augmented.image))
            masks.append(labels.targets(transforms, augmented).masks)
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        padded = [
            F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]), value=IMAGE_PADDING)
            for image in images
        ]
        masks_NThw = torch.zeros(len(classes), len(images), height, width, dtype=torch.bool)
        for frame, masks_Nhw in enumerate(masks):
            masks_NThw[:, frame, : masks_Nhw.shape[1], : masks_Nhw.shape[2]] = masks_Nhw
        instances = _visible_instances(classes, list(range(len(classes))), masks_NThw)
        return {**self.start_sample(record, size), "image": padded, "instances": instances}


@register_mapper("joint_clip")
class JointClipDatasetMapper:
    """Videos and pictures together: clips of videos as "ytvis_clip" makes them, of pictures as "coco_clip" does."""

    def __init__(self, cfg: CfgNode, is_train: bool = True) -> None:
        self.of_videos = YTVISDatasetMapper(cfg, is_train)
        self.of_pictures = CocoClipDatasetMapper(cfg, is_train)

    def __call__(self, record: Record) -> Record:
        """As the mapper of the record's kind."""
        sample: Record = (self.of_videos if "file_names" in record else self.of_pictures)(record)
        return sample


def _visible_instances(classes: list[int], ids: list[int], masks_NThw: Tensor) -> Instances:
    """The objects that are seen in any frame, as the model reads them."""
    # One picture of each object: its frames on top of each other.
    kept_N = is_visible(masks_NThw.flatten(1, 2)) if classes else torch.zeros(0, dtype=torch.bool)
    instances = Instances(tuple(masks_NThw.shape[-2:]))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)[kept_N]
    instances.gt_ids = torch.tensor(ids, dtype=torch.int64)[kept_N]
    instances.gt_masks = masks_NThw[kept_N]
    return instances
