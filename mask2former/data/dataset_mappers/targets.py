"""What the tasks make of a picture's labels: the only differences between the mappers.

A task reads the labels of one picture into its kind of `FrameLabels`. They are told which transforms the picture went
through and answer with `Targets`, classes and masks. Reading and transforming are apart so that the frames of a clip
can share one list of transforms.
"""

# N segments, H, W pixels of the picture as it is stored, h, w after the transforms.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import transforms as T
from numpy.typing import NDArray
from torch import Tensor

from mask2former.data.label_window import LabelWindow
from mask2former.data.masks import ids_to_masks, rgb_to_id, to_rle
from mask2former.data.reading import BrokenSampleError, check_size, read_class_map, read_panoptic_ids
from mask2former.run_lengths import draw_runs

Record = dict[str, Any]


class Targets(NamedTuple):
    """The segments of one picture after its transforms; a segment that was cut away has an all-false mask."""

    classes: Tensor  # (N,) int64
    masks: Tensor  # (N, h, w) bool


class FrameLabels(ABC):
    """The labels of one picture as they are stored.

    Attributes:
        class_map_HW: class of each pixel, for crops that look at it; None where no crop does. Detectron2 resizes uint8
            labels by Pillow's nearest rule and all others by torch's, which differ by up to a pixel.
    """

    class_map_HW: NDArray[Any] | None = None

    @abstractmethod
    def targets(self, transforms: T.TransformList, augmented: T.AugInput) -> Targets:
        """The targets after `transforms`; `augmented` holds what they made of the picture and of `class_map_HW`."""


class SemanticLabels(FrameLabels):
    """One segment for each class that occurs, in ascending order."""

    def __init__(self, file_name: str, class_map_HW: NDArray[Any], *, ignore_label: int, num_classes: int) -> None:
        self.file_name = file_name
        # Floating point selects torch's nearest rule. Pillow's would agree with the panoptic labels, but the published
        # semantic models were trained with this one.
        self.class_map_HW = class_map_HW.astype(np.float32)
        self.ignore_label = ignore_label
        self.num_classes = num_classes

    @classmethod
    def read(cls, record: Record, size: tuple[int, int], *, ignore_label: int, num_classes: int) -> SemanticLabels:
        path = record.get("sem_seg_file_name")
        if path is None:
            raise _missing_key(record, "sem_seg_file_name")
        if "annotations" in record:
            raise ValueError(
                f"{record['file_name']}: semantic segmentation cannot use a record with `annotations`; choose another "
                "INPUT.DATASET_MAPPER_NAME or another data set"
            )
        class_map_HW = read_class_map(path)
        check_size(path, class_map_HW.shape, size, record["file_name"])
        return cls(path, class_map_HW, ignore_label=ignore_label, num_classes=num_classes)

    def targets(self, transforms: T.TransformList, augmented: T.AugInput) -> Targets:
        labels_hw = augmented.sem_seg.astype(np.int32)
        present = np.flatnonzero(np.bincount(labels_hw.ravel()))
        classes = [int(label) for label in present if label != self.ignore_label]
        check_classes(classes, self.num_classes, self.file_name, f"or {self.ignore_label} (ignored)")
        return Targets(torch.tensor(classes, dtype=torch.int64), ids_to_masks(labels_hw, classes))


class PanopticLabels(FrameLabels):
    """One segment for each entry of `segments_info` that is no crowd, in the order listed."""

    def __init__(self, ids_rgb_HW3: NDArray[np.uint8], segments: list[Record]) -> None:
        self.ids_rgb_HW3 = ids_rgb_HW3
        self.segments = [segment for segment in segments if not segment.get("iscrowd", 0)]

    @classmethod
    def read(
        cls, record: Record, size: tuple[int, int], *, num_classes: int, crop_ignore_label: int | None = None
    ) -> PanopticLabels:
        """Reads the panoptic PNG.

        Args:
            crop_ignore_label: a crop looks at classes, and this value stands for "none"; then the class map comes from
                `sem_seg_file_name`, or from the panoptic labels where the record has none. None: no crop looks.
        """
        path = record.get("pan_seg_file_name")
        if path is None:
            raise _missing_key(record, "pan_seg_file_name")
        ids_rgb_HW3 = read_panoptic_ids(path)
        check_size(path, ids_rgb_HW3.shape, size, record["file_name"])
        labels = cls(ids_rgb_HW3, record["segments_info"])
        check_classes([segment["category_id"] for segment in labels.segments], num_classes, path)
        semantic_path = record.get("sem_seg_file_name")
        if semantic_path is not None:
            class_map_HW = read_class_map(semantic_path)
            check_size(semantic_path, class_map_HW.shape, size, record["file_name"])
            # uint8 takes Pillow's nearest rule like the ids do, so that both maps agree; the original resized this one
            # by torch's, but used it for nothing except the choice of the crop.
            labels.class_map_HW = class_map_HW if class_map_HW.dtype == np.uint8 else class_map_HW.astype(np.float32)
        elif crop_ignore_label is not None:
            labels.class_map_HW = labels._class_map_from_ids(record["segments_info"], crop_ignore_label)
        return labels

    def targets(self, transforms: T.TransformList, augmented: T.AugInput) -> Targets:
        classes = torch.tensor([segment["category_id"] for segment in self.segments], dtype=torch.int64)
        ids = [segment["id"] for segment in self.segments]
        window = LabelWindow.after(transforms, self.ids_rgb_HW3.shape[:2])
        if window is None:
            ids_hw = rgb_to_id(transforms.apply_segmentation(self.ids_rgb_HW3))
        elif augmented.image[..., 0].size < self.ids_rgb_HW3[..., 0].size:
            ids_hw = rgb_to_id(window.read(self.ids_rgb_HW3))
        else:
            ids_hw = window.read(rgb_to_id(self.ids_rgb_HW3))
        return Targets(classes, ids_to_masks(ids_hw, ids))

    def _class_map_from_ids(self, segments: list[Record], ignore_label: int) -> NDArray[Any]:
        present, place_HW = np.unique(rgb_to_id(self.ids_rgb_HW3), return_inverse=True)
        class_of_id = {segment["id"]: segment["category_id"] for segment in segments}
        classes = np.array([class_of_id.get(int(identifier), ignore_label) for identifier in present])
        class_map_HW = classes[place_HW.reshape(self.ids_rgb_HW3.shape[:2])]
        return class_map_HW.astype(np.uint8 if classes.max() < 256 else np.float32)


class InstanceLabels(FrameLabels):
    """One segment for each annotation that is no crowd, from polygons or RLE."""

    def __init__(self, file_name: str, annotations: list[Record], size: tuple[int, int]) -> None:
        self.file_name = file_name
        self.annotations = [annotation for annotation in annotations if not annotation.get("iscrowd", 0)]
        self.size = size

    @classmethod
    def read(cls, record: Record, size: tuple[int, int], *, num_classes: int) -> InstanceLabels:
        annotations = record.get("annotations")
        if annotations is None:
            raise _missing_key(record, "annotations")
        labels = cls(record["file_name"], annotations, size)
        check_classes([annotation["category_id"] for annotation in labels.annotations], num_classes, labels.file_name)
        return labels

    def targets(self, transforms: T.TransformList, augmented: T.AugInput) -> Targets:
        classes = torch.tensor([annotation["category_id"] for annotation in self.annotations], dtype=torch.int64)
        masks_Nhw = np.zeros((len(self.annotations), *augmented.image.shape[:2]), dtype=bool)
        try:
            self._draw(masks_Nhw, transforms)
        except ValueError as error:
            raise BrokenSampleError(f"{self.file_name}: {error}") from error
        return Targets(classes, torch.from_numpy(masks_Nhw))

    def _draw(self, masks_Nhw: NDArray[np.bool_], transforms: T.TransformList) -> None:
        """Polygons move with the picture and are drawn at its new size, run lengths are looked up at their old one.

        COCO's rasterization leaves out what lies beyond the picture, so a polygon that was cut away costs nothing.
        """
        segmentations = [annotation["segmentation"] for annotation in self.annotations]
        polygons = _move_polygons([shape for shape in segmentations if isinstance(shape, list)], transforms)
        window = LabelWindow.after(transforms, self.size)
        for segmentation, mask_hw in zip(segmentations, masks_Nhw, strict=True):
            if isinstance(segmentation, list):
                draw_runs(to_rle(next(polygons), mask_hw.shape), mask_hw)
                continue
            stored_HW = np.zeros(self.size, dtype=bool)
            draw_runs(to_rle(segmentation, self.size), stored_HW)
            labels_HW = stored_HW.view(np.uint8)
            mask_hw[:] = transforms.apply_segmentation(labels_HW) if window is None else window.read(labels_HW)


def check_classes(classes: list[int], num_classes: int, file_name: str, also_allowed: str = "") -> None:
    """Raises ValueError with the file, the value and the allowed range when a class is none of 0..num_classes-1."""
    wrong = next((label for label in classes if not 0 <= label < num_classes), None)
    if wrong is not None:
        raise ValueError(
            f"{file_name} has the class {wrong}; allowed are 0..{num_classes - 1} {also_allowed}".rstrip()
            + " (MODEL.SEM_SEG_HEAD.NUM_CLASSES)"
        )


def _missing_key(record: Record, key: str) -> ValueError:
    return ValueError(
        f"the record of {record['file_name']} has no {key!r}, which this mapper needs; choose another "
        "INPUT.DATASET_MAPPER_NAME or another data set (DATASETS.TRAIN)"
    )


def _move_polygons(segmentations: list[list[Any]], transforms: T.TransformList) -> Iterator[list[NDArray[np.float64]]]:
    """The polygons of one annotation after the other, all transformed in one call."""
    flat = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygons in segmentations for polygon in polygons]
    ends = np.cumsum([len(polygon) for polygon in flat])
    moved = iter(np.split(transforms.apply_coords(np.concatenate(flat)), ends[:-1]) if flat else ())
    return ([next(moved).reshape(-1) for _ in polygons] for polygons in segmentations)
