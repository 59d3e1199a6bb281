"""Tidier masks: weak and small segments dropped, holes filled, outlines smoothed, doubles removed.

Every function takes a `Segmentation` and returns another; the one given stays as it is. A segment's work is done in its
box. What a pixel of a panoptic or semantic result loses becomes void (0, or class -1); what a segment gains it takes
from void only, never from another segment. Instances may overlap, before and after.
"""

# (H, W) pixels of the picture, (h, w) of a segment's box.

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mask2former.deploy.mask_runs import LabelRuns, bitmap, row_strips, runs_of_mask, runs_of_rle, united
from mask2former.deploy.results import Segment, Segmentation
from mask2former.deploy.segments import class_segments, with_runs

__all__ = ["MaskCleanup", "close_masks", "drop_doubles", "drop_small", "drop_weak", "fill_holes", "open_masks"]

Mask = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class MaskCleanup:
    """All steps in the order of the fields; what is left at its default does nothing.

    Attributes:
        threshold: see `drop_weak`.
        open_radius: see `open_masks`.
        close_radius: see `close_masks`.
        hole_area: see `fill_holes`.
        min_area: see `drop_small`.
        nms_overlap: see `drop_doubles`.
    """

    threshold: float = 0.0
    open_radius: int = 0
    close_radius: int = 0
    hole_area: int = 0
    min_area: int = 0
    nms_overlap: float = 1.0

    def __post_init__(self) -> None:
        for name in ("threshold", "nms_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        for name in ("open_radius", "close_radius", "hole_area", "min_area"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more pixels, got {getattr(self, name)}")

    def __call__(self, segmentation: Segmentation) -> Segmentation:
        """The tidied result."""
        if self.threshold > 0:
            segmentation = drop_weak(segmentation, self.threshold)
        if self.open_radius > 0:
            segmentation = open_masks(segmentation, self.open_radius)
        if self.close_radius > 0:
            segmentation = close_masks(segmentation, self.close_radius)
        if self.hole_area > 0:
            segmentation = fill_holes(segmentation, self.hole_area)
        if self.min_area > 0:
            segmentation = drop_small(segmentation, self.min_area)
        if self.nms_overlap < 1:
            segmentation = drop_doubles(segmentation, self.nms_overlap)
        return segmentation


def drop_weak(segmentation: Segmentation, threshold: float) -> Segmentation:
    """Without segments whose score, and semantic pixels whose confidence, is below `threshold` in [0, 1].

    Segments that have no score stay.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"a threshold of scores must lie in 0..1, got {threshold}")
    if segmentation.task == "semantic":
        assert segmentation.confidence is not None, "a semantic result has a confidence"
        assert segmentation.label_map is not None, "a semantic result has a map"
        return _with_labels(segmentation, np.where(segmentation.confidence < threshold, -1, segmentation.label_map))
    return _kept(
        segmentation, [segment.score is None or segment.score >= threshold for segment in segmentation.segments]
    )


def drop_small(segmentation: Segmentation, min_area: int) -> Segmentation:
    """Without segments of fewer than `min_area` pixels.

    A class of a semantic result is no object: of it connected parts (over edges) are dropped that are as small.
    """
    if segmentation.task != "semantic":
        return _kept(segmentation, [segment.area >= min_area for segment in segmentation.segments])

    def large_parts(mask_hw: Mask) -> Mask:
        parts_hw, areas = _parts(mask_hw)
        return (areas >= min_area)[parts_hw] & mask_hw

    return _changed(segmentation, large_parts)


def fill_holes(segmentation: Segmentation, max_area: int) -> Segmentation:
    """Holes of at most `max_area` pixels become part of the segment around them."""

    def filled(mask_hw: Mask) -> Mask:
        parts_hw, areas = _parts(np.pad(~mask_hw, 1, constant_values=True))
        is_hole = areas <= max_area
        is_hole[parts_hw[0, 0]] = False  # the part in which the mask lies
        return is_hole[parts_hw[1:-1, 1:-1]] | mask_hw

    return _changed(segmentation, filled)


def open_masks(segmentation: Segmentation, radius: int) -> Segmentation:
    """Without what is narrower than a disc of `radius` pixels: spurs, bridges, specks (morphological opening).

    Masks count as going on beyond the edge of the picture.
    """
    # OpenCV does not shrink a mask from the edges of its array; those inside the picture need a margin.
    return _changed(segmentation, lambda mask_hw: _morphology(mask_hw, cv2.MORPH_OPEN, radius), margin=radius + 1)


def close_masks(segmentation: Segmentation, radius: int) -> Segmentation:
    """With gaps and bays closed that a disc of `radius` pixels does not enter (morphological closing)."""
    frame = 2 * radius + 1

    def closed(mask_hw: Mask) -> Mask:
        framed = np.pad(mask_hw, frame)
        return _morphology(framed, cv2.MORPH_CLOSE, radius)[frame:-frame, frame:-frame]

    return _changed(segmentation, closed)


def drop_doubles(segmentation: Segmentation, max_overlap: float) -> Segmentation:
    """Mask NMS: without instances that overlap a better one of their class by more than this.

    Args:
        max_overlap: intersection over union, in [0, 1].

    Raises:
        ValueError: the result is not of instances: segments of other tasks never overlap.
    """
    if segmentation.task != "instance":
        raise ValueError(f"segments of a {segmentation.task} result never overlap: NMS is for instances")
    if not 0 <= max_overlap <= 1:
        raise ValueError(f"the overlap of NMS must lie in 0..1, got {max_overlap}")
    segments = segmentation.segments
    rles = [{"size": segment.mask["size"], "counts": segment.mask["counts"].encode("ascii")} for segment in segments]
    by_class: dict[int, list[int]] = {}
    for index in sorted(range(len(segments)), key=lambda index: -(segments[index].score or 0)):
        by_class.setdefault(segments[index].category, []).append(index)
    is_kept = [False] * len(segments)
    for indices in by_class.values():
        kept: list[int] = []
        for index in indices:
            neighbors = [other for other in kept if _meet(segments[index], segments[other])]
            if neighbors:
                overlaps = coco_mask.iou([rles[index]], [rles[other] for other in neighbors], [0] * len(neighbors))
                if overlaps.max() > max_overlap:
                    continue
            kept.append(index)
            is_kept[index] = True
    return _kept(segmentation, is_kept)


def _kept(segmentation: Segmentation, is_kept: Sequence[bool]) -> Segmentation:
    """With some of the segments of an instance or panoptic result."""
    return segmentation.keep([index for index, stays in enumerate(is_kept) if stays])


def _changed(segmentation: Segmentation, change: Callable[[Mask], Mask], margin: int = 0) -> Segmentation:
    """With every mask changed by a function of (h, w) bool arrays.

    Args:
        margin: pixels around a segment's box, as far as the picture reaches, that the function gets, too.
    """
    height, width = segmentation.height, segmentation.width
    labels_HW = None if segmentation.label_map is None else segmentation.label_map.copy()
    segments = []
    for number, segment in enumerate(segmentation.segments, start=1):
        left, top = max(0, int(segment.box[0]) - margin), max(0, int(segment.box[1]) - margin)
        right, bottom = min(width, int(segment.box[2]) + margin), min(height, int(segment.box[3]) + margin)
        if left >= right or top >= bottom:
            segments.append(segment)
            continue
        mask_hw = bitmap(runs_of_rle(segment.mask), height, (left, top, right, bottom))
        changed_hw = change(mask_hw)
        if labels_HW is None:
            runs = united(runs_of_mask(changed_hw, height, (left, top)))
            segments.append(with_runs(segment, runs, (height, width)))
            continue
        label, void = (segment.category, -1) if segmentation.task == "semantic" else (number, 0)
        labels_hw = labels_HW[top:bottom, left:right]
        labels_hw[mask_hw & ~changed_hw] = void
        labels_hw[changed_hw & (labels_hw == void)] = label
    if labels_HW is not None:
        return _with_labels(segmentation, labels_HW)
    is_kept = [segment.area > 0 for segment in segments]
    return _kept(dataclasses.replace(segmentation, segments=tuple(segments)), is_kept)


def _with_labels(segmentation: Segmentation, labels_HW: NDArray[np.integer[Any]]) -> Segmentation:
    """A panoptic or semantic result with another map; segments that it does not show any more are dropped."""
    if segmentation.task == "semantic":
        assert segmentation.confidence is not None, "a semantic result has a confidence"
        segments = class_segments(labels_HW, segmentation.confidence, segmentation.classes)
        return dataclasses.replace(segmentation, segments=segments, label_map=labels_HW)
    size = (segmentation.height, segmentation.width)
    runs = LabelRuns(size[0])
    for rows in row_strips(size):
        runs.add(rows.start, labels_HW[rows], lowest=1)
    runs_of_label = runs.value()
    segments = tuple(
        with_runs(segment, runs_of_label[number], size) if number in runs_of_label else segment
        for number, segment in enumerate(segmentation.segments, start=1)
    )
    is_kept = [number in runs_of_label for number in range(1, 1 + len(segments))]
    return _kept(dataclasses.replace(segmentation, segments=segments, label_map=labels_HW), is_kept)


def _meet(first: Segment, second: Segment) -> bool:
    return max(first.box[0], second.box[0]) < min(first.box[2], second.box[2]) and max(
        first.box[1], second.box[1]
    ) < min(first.box[3], second.box[3])


def _parts(mask_hw: Mask) -> tuple[NDArray[Any], NDArray[Any]]:
    """Number of each pixel's connected part, (h, w), 0 outside the mask, and the area of each number."""
    _, parts_hw, statistics, _ = cv2.connectedComponentsWithStats(mask_hw.view(np.uint8), connectivity=4)
    return parts_hw, statistics[:, cv2.CC_STAT_AREA]


def _morphology(mask_hw: Mask, operation: int, radius: int) -> Mask:
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    result_hw: Mask = cv2.morphologyEx(mask_hw.view(np.uint8), operation, disc).view(np.bool_)
    return result_hw
