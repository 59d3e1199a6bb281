"""What a model found in a picture, as plain data: segments with masks, names, scores and boxes, and maps of them."""

# (H, W) pixels of the picture.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from detectron2.data import Metadata
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mask2former.data.masks import encode_rle
from mask2former.deploy.outlines import outlines
from mask2former.modeling.postprocessing import RunLengthMasks
from mask2former.visualization import class_color, class_name, draw_instances, draw_panoptic, draw_semantic

__all__ = ["TASKS", "ClassInfo", "MaskFormat", "Segment", "Segmentation", "Task", "class_infos", "segmentation_of"]

Task = Literal["panoptic", "instance", "semantic"]
TASKS: tuple[Task, ...] = ("panoptic", "instance", "semantic")

MaskFormat = Literal["rle", "polygons", "none"]

Rle = dict[str, Any]


@dataclass(frozen=True)
class ClassInfo:
    """A class that the model knows; its contiguous index is its place in the list of classes."""

    name: str
    color: tuple[int, int, int]  # RGB, 0..255
    dataset_id: int  # in the files of the data set
    is_thing: bool  # countable, as opposed to stuff


@dataclass(frozen=True)
class Segment:
    """One object or region.

    Attributes:
        category: contiguous class index.
        name, dataset_id, is_thing: of the class.
        score: in [0, 1]: of a panoptic segment the class probability, of an instance that times the quality of its
            mask, of a semantic region the mean confidence of its pixels; None where it is not known.
        box: tight (x0, y0, x1, y1) in pixels, ends exclusive.
        area: pixels.
        mask: COCO's compressed run lengths, `size` [H, W] and `counts` as text.
        track_id: the same for one object in all frames of a video; None in single pictures.
    """

    category: int
    name: str
    dataset_id: int
    is_thing: bool
    score: float | None
    box: tuple[float, float, float, float]
    area: int
    mask: Rle
    track_id: int | None = None

    @classmethod
    def of(cls, mask: Rle, category: int, info: ClassInfo, *, score: float | None) -> Segment:
        """The segment of a mask: box and area are measured."""
        bare = cls(category, info.name, info.dataset_id, info.is_thing, score, box=(0, 0, 0, 0), area=0, mask=mask)
        return bare.with_mask(mask)

    def with_mask(self, mask: Rle) -> Segment:
        """The segment with other pixels: box and area are measured."""
        left, top, width, height = coco_mask.toBbox(mask).tolist()
        box = (left, top, left + width, top + height)
        return replace(self, mask=mask, box=box, area=int(coco_mask.area(mask)))

    def bitmap(self) -> NDArray[np.bool_]:
        """(H, W)."""
        return np.ascontiguousarray(coco_mask.decode(self.mask)).astype(bool)

    def polygons(self) -> list[list[int]]:
        """Each part of the mask as [x0, y0, x1, y1, ...] along pixel edges; see `outlines` for holes."""
        return outlines(self.bitmap())


@dataclass(frozen=True)
class Segmentation:
    """The result of one task on one picture.

    Attributes:
        task: what the segments are.
        height, width: of the picture, in pixels.
        segments: none is empty. Panoptic: no pixel in two of them; instance: by descending score, may overlap;
            semantic: one for each class that occurs, by class index.
        label_map: (H, W) integers. Panoptic: the segment's number, 1 for the first, 0 where there is none. Semantic:
            the class index. Instance: None.
        confidence: semantic: (H, W) float32, share of the chosen class in the scores of the pixel, in (0, 1]; else
            None.
        classes: that the model knows.
    """

    task: Task
    height: int
    width: int
    segments: tuple[Segment, ...]
    label_map: NDArray[np.integer[Any]] | None
    confidence: NDArray[np.float32] | None
    classes: tuple[ClassInfo, ...]

    def keep(self, indices: Sequence[int]) -> Segmentation:
        """Some of the segments; pixels of the others become void: 0, in a semantic map -1.

        Args:
            indices: of the segments that are kept, ascending.
        """
        if len(indices) == len(self.segments):
            return self
        segments = tuple(self.segments[index] for index in indices)
        label_map = self.label_map
        if label_map is not None and self.task == "panoptic":
            numbers = np.zeros(1 + len(self.segments), dtype=label_map.dtype)
            numbers[[1 + index for index in indices]] = 1 + np.arange(len(indices))
            label_map = numbers[label_map]
        elif label_map is not None:
            label_map = np.where(np.isin(label_map, [segment.category for segment in segments]), label_map, -1)
        return replace(self, segments=segments, label_map=label_map)

    def draw(self, image: NDArray[np.uint8], *, threshold: float = 0.0) -> NDArray[np.uint8]:
        """The picture with what was found in it. Things of a video bear their `track_id` and keep their color.

        Args:
            image: (H, W, 3) uint8 RGB, the picture that was segmented.
            threshold: segments with a score below this, of a semantic map pixels with such a confidence, are left out.

        Returns:
            (h, w, 3) uint8 RGB; pictures too small to write on are enlarged by a whole factor.
        """
        metadata = _metadata(self.classes)
        if self.task == "instance":
            drawn = [segment for segment in self.segments if (segment.score or 0.0) >= threshold]
            masks = np.zeros((len(drawn), self.height, self.width), dtype=bool)
            for mask, segment in zip(masks, drawn, strict=True):
                mask[:] = segment.bitmap()
            return draw_instances(
                image,
                masks,
                [segment.category for segment in drawn],
                metadata,
                scores=[segment.score or 0.0 for segment in drawn],
                track_ids=[segment.track_id for segment in drawn],
            )
        assert self.label_map is not None, f"a {self.task} segmentation has a map"
        if self.task == "panoptic":
            infos = [
                {
                    "id": number,
                    "category_id": segment.category,
                    "isthing": segment.is_thing,
                    "score": segment.score,
                    "track_id": segment.track_id,
                }
                for number, segment in enumerate(self.segments, start=1)
            ]
            return draw_panoptic(image, self.label_map, infos, metadata, threshold=threshold)
        labels = self.label_map
        if threshold > 0 and self.confidence is not None:
            labels = np.where(self.confidence < threshold, -1, labels)
        return draw_semantic(image, labels, metadata)

    def to_json(self, masks: MaskFormat = "rle") -> dict[str, Any]:
        """What `json.dumps` accepts: task, size and segments; the maps can be made from the segments.

        Args:
            masks: as run lengths under `mask`, as outlines under `polygons`, or not at all.
        """
        if masks not in ("rle", "polygons", "none"):
            raise ValueError(f"masks={masks!r} is unknown; choose from rle, polygons, none")
        segments = []
        for segment in self.segments:
            entry: dict[str, Any] = {
                "category": segment.category,
                "name": segment.name,
                "dataset_id": segment.dataset_id,
                "is_thing": segment.is_thing,
                "score": segment.score,
                "box": list(segment.box),
                "area": segment.area,
            }
            if segment.track_id is not None:
                entry["track_id"] = segment.track_id
            if masks == "rle":
                entry["mask"] = segment.mask
            elif masks == "polygons":
                entry["polygons"] = segment.polygons()
            segments.append(entry)
        return {"task": self.task, "height": self.height, "width": self.width, "segments": segments}


def class_infos(metadata: Metadata, num_classes: int) -> tuple[ClassInfo, ...]:
    """The classes of a data set, by contiguous index; what its metadata does not say is "class <index>", id = index."""
    things = metadata.get("thing_dataset_id_to_contiguous_id", None) or {}
    stuff = metadata.get("stuff_dataset_id_to_contiguous_id", None) or {}
    dataset_ids = {index: dataset_id for ids in (stuff, things) for dataset_id, index in ids.items()}
    thing_indices = set(things.values())
    return tuple(
        ClassInfo(
            name=class_name(metadata, index),
            color=class_color(metadata, index),
            dataset_id=int(dataset_ids.get(index, index)),
            is_thing=index in thing_indices,
        )
        for index in range(num_classes)
    )


def segmentation_of(prediction: Mapping[str, Any], task: Task, classes: Sequence[ClassInfo]) -> Segmentation:
    """The result of a task from what `MaskFormer.forward` gives for one picture.

    Args:
        prediction: with `panoptic_seg`, `instances` (of any INSTANCE_OUTPUT) or `sem_seg` (scores or labels), on any
            device.
        task: which of them.
        classes: that the model knows.

    Raises:
        ValueError: the task is unknown, or the prediction lacks its result.
    """
    readers = {"panoptic": _panoptic, "instance": _instances, "semantic": _semantic}
    keys = {"panoptic": "panoptic_seg", "instance": "instances", "semantic": "sem_seg"}
    if task not in readers:
        raise ValueError(f"task {task!r} is unknown; choose from {', '.join(TASKS)}")
    if keys[task] not in prediction:
        raise ValueError(f"the prediction has no {keys[task]!r} for the {task} task, only {sorted(prediction)}")
    return readers[task](prediction, tuple(classes))


def _panoptic(prediction: Mapping[str, Any], classes: tuple[ClassInfo, ...]) -> Segmentation:
    map_tensor, infos = prediction["panoptic_seg"]
    ids_HW = map_tensor.cpu().numpy()
    numbers_HW = np.zeros(ids_HW.shape, dtype=np.int32)
    segments = []
    for number, info in enumerate(infos, start=1):
        mask_HW = ids_HW == info["id"]
        numbers_HW[mask_HW] = number
        category = int(info["category_id"])
        score = info.get("score")
        segments.append(
            Segment.of(encode_rle(mask_HW), category, classes[category], score=None if score is None else float(score))
        )
    height, width = ids_HW.shape
    return Segmentation("panoptic", height, width, tuple(segments), numbers_HW, None, classes)


def _instances(prediction: Mapping[str, Any], classes: tuple[ClassInfo, ...]) -> Segmentation:
    instances = prediction["instances"].to("cpu")
    masks = instances.pred_masks
    rles = masks.rles if isinstance(masks, RunLengthMasks) else [encode_rle(mask.numpy() > 0) for mask in masks]
    segments = [
        Segment.of(rle, category, classes[category], score=score)
        for rle, category, score in zip(
            rles, instances.pred_classes.tolist(), instances.scores.float().tolist(), strict=True
        )
    ]
    height, width = instances.image_size
    found = tuple(segment for segment in segments if segment.area)  # a query may have a class and no pixel
    return Segmentation("instance", height, width, found, None, None, classes)


def _semantic(prediction: Mapping[str, Any], classes: tuple[ClassInfo, ...]) -> Segmentation:
    semantic = prediction["sem_seg"].cpu()
    if semantic.dim() == 2:
        labels_HW = semantic.numpy()
        confidence_HW = prediction["sem_seg_confidence"].float().cpu().numpy()
    else:
        scores_KHW = semantic.float()
        best_HW, best_class_HW = scores_KHW.max(dim=0)
        labels_HW = best_class_HW.int().numpy()
        confidence_HW = (best_HW / scores_KHW.sum(dim=0)).nan_to_num(1 / len(scores_KHW)).numpy()
    segments = []
    for category in np.unique(labels_HW).tolist():
        mask_HW = labels_HW == category
        score = float(confidence_HW[mask_HW].mean())
        segments.append(Segment.of(encode_rle(mask_HW), category, classes[category], score=score))
    height, width = labels_HW.shape
    return Segmentation("semantic", height, width, tuple(segments), labels_HW, confidence_HW, classes)


def _metadata(classes: Sequence[ClassInfo]) -> Metadata:
    """What the drawing functions read."""
    return Metadata(
        stuff_classes=[info.name for info in classes],
        stuff_colors=[info.color for info in classes],
        ignore_label=-1,
    )
