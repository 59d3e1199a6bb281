"""Changes to a result that keep its maps true: segments leave it, others join it."""
# (H, W) pixels of a picture, P pixels of a mask.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mask2former.data.masks import encode_rle
from mask2former.deploy.results import Segment, Segmentation

__all__ = ["add_hidden_segments", "keep_segments", "moved_mask"]


def keep_segments(segmentation: Segmentation, track_ids: Mapping[int, int | None]) -> Segmentation:
    """Some of the segments of a panoptic or instance result, with identities; pixels of the others become void.

    Args:
        segmentation: the result.
        track_ids: by index of a segment that is kept.
    """
    indices = sorted(track_ids)
    kept = segmentation.keep(indices)
    segments = (
        replace(segment, track_id=track_ids[index]) for segment, index in zip(kept.segments, indices, strict=True)
    )
    return replace(kept, segments=tuple(segments))


def add_hidden_segments(segmentation: Segmentation, segments: Sequence[Segment]) -> Segmentation:
    """Adds things where no other thing is: what they share with one lies behind it. Stuff makes room for them.

    Args:
        segmentation: a panoptic or instance result.
        segments: things; those of which no pixel remains are left out.
    """
    if not segments:
        return segmentation
    taken_HW = np.zeros((segmentation.height, segmentation.width), dtype=bool)
    for segment in segmentation.segments:
        if segment.is_thing:
            taken_HW |= segment.bitmap()
    added: list[Segment] = []
    added_HW = np.zeros_like(taken_HW)
    label_map = None if segmentation.label_map is None else segmentation.label_map.copy()
    for segment in segments:
        seen_HW = segment.bitmap() & ~taken_HW
        if seen_HW.any():
            added.append(segment.with_mask(encode_rle(seen_HW)))
            taken_HW |= seen_HW
            added_HW |= seen_HW
            if label_map is not None:
                label_map[seen_HW] = len(segmentation.segments) + len(added)
    if not added:
        return segmentation
    before = [segment if segment.is_thing else _without(segment, added_HW) for segment in segmentation.segments]
    together = replace(segmentation, segments=(*before, *added), label_map=label_map)
    if label_map is None:  # instances come by score
        in_order = sorted(together.segments, key=lambda segment: -(segment.score or 0.0))
        together = replace(together, segments=tuple(in_order))
    seen = {index: segment.track_id for index, segment in enumerate(together.segments) if segment.area}
    return keep_segments(together, seen)


def moved_mask(mask_HW: NDArray[np.bool_], rows: int, columns: int) -> NDArray[np.bool_]:
    """The mask so many pixels further down and to the right; what leaves the picture is gone."""
    rows_P, columns_P = np.nonzero(mask_HW)
    rows_P, columns_P = rows_P + rows, columns_P + columns
    height, width = mask_HW.shape
    stays_P = (rows_P >= 0) & (rows_P < height) & (columns_P >= 0) & (columns_P < width)
    moved_HW = np.zeros_like(mask_HW)
    moved_HW[rows_P[stays_P], columns_P[stays_P]] = True
    return moved_HW


def _without(segment: Segment, mask_HW: NDArray[np.bool_]) -> Segment:
    seen_HW = segment.bitmap()
    return segment.with_mask(encode_rle(seen_HW & ~mask_HW)) if (seen_HW & mask_HW).any() else segment
