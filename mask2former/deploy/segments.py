"""Segments from masks that are kept as runs, and from maps of classes."""

# (H, W) pixels of the picture, r rows, K classes.

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask2former.deploy.mask_runs import LabelRuns, Runs, area, box, rle_of_runs, row_strips
from mask2former.deploy.results import ClassInfo, Segment

__all__ = ["class_segments", "with_runs"]


def with_runs(segment: Segment, runs: Runs, size: tuple[int, int]) -> Segment:
    """The segment with another mask, and its box and area.

    Args:
        runs: united.
        size: (H, W) of the mask.
    """
    left, top, right, bottom = (float(edge) for edge in box(runs, size[0]))
    return dataclasses.replace(segment, box=(left, top, right, bottom), area=area(runs), mask=rle_of_runs(runs, size))


def class_segments(
    labels_HW: NDArray[np.integer[Any]], confidence_HW: NDArray[np.float32], classes: Sequence[ClassInfo]
) -> tuple[Segment, ...]:
    """A segment for each class of a semantic map, as `segmentation_of` makes them; -1 is no class."""
    size = (labels_HW.shape[0], labels_HW.shape[1])
    runs = LabelRuns(size[0])
    confidence_K = np.zeros(len(classes))
    for rows in row_strips(size):
        labels_rW = labels_HW[rows]
        runs.add(rows.start, labels_rW, lowest=0)
        # Pixels of no class are counted first, and left out.
        sums = np.bincount(labels_rW.ravel() + 1, confidence_HW[rows].ravel(), minlength=1 + len(classes))
        confidence_K += sums[1:]
    segments = []
    for category, runs_of_class in runs.value().items():
        info = classes[category]
        score = float(confidence_K[category]) / area(runs_of_class)
        bare = Segment(category, info.name, info.dataset_id, info.is_thing, score, (0, 0, 0, 0), 0, {})
        segments.append(with_runs(bare, runs_of_class, size))
    return tuple(segments)
