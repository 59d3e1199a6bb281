"""Segments as features of GeoJSON: their properties, and their outlines along the edges of pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mask2former.deploy.mask_runs import bitmap, runs_of_rle
from mask2former.deploy.results import Segment

__all__ = ["feature", "outlines_of"]


def feature(number: int, segment: Segment, geometry: dict[str, Any]) -> dict[str, Any]:
    """The feature of a segment.

    Args:
        number: of the segment, 1 for the first.
        geometry: all of it or one of its parts.
    """
    properties = {
        "segment": number,
        "class": segment.name,
        "dataset_id": segment.dataset_id,
        "is_thing": segment.is_thing,
        "score": segment.score,
        "area": segment.area,
    }
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def outlines_of(segment: Segment, transform: Any) -> Iterator[dict[str, Any]]:
    """A polygon, with its holes, for each connected part (over edges) of a segment.

    Args:
        transform: rasterio's, of the pixels of the picture: x to the right, y down, (0, 0) its upper left corner.
    """
    from rasterio.features import shapes

    left, top, right, bottom = (int(edge) for edge in segment.box)
    mask_hw = bitmap(runs_of_rle(segment.mask), segment.mask["size"][0], (left, top, right, bottom))
    if mask_hw.size:
        placed = transform * transform.translation(left, top)
        for geometry, _ in shapes(mask_hw.view(np.uint8), mask=mask_hw, connectivity=4, transform=placed):
            yield geometry
