"""Run lengths of tracks: an object in all frames of a video as one mask.

COCO's run lengths follow the columns of a picture. Those of T frames of H x W pixels, one after the other, are
therefore the run lengths of one picture of H x (T*W) pixels, in which the frames stand side by side.
"""
# T frames of (H, W) pixels, R runs.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mask2former.data.masks import to_rle
from mask2former.data.run_lengths import run_counts

__all__ = ["Track", "joined_frames"]

#: Run lengths of one frame, COCO's or polygons; None where the object is not seen.
FrameShape = Mapping[str, Any] | Sequence[Sequence[float]] | None


class Track(NamedTuple):
    """An object in all frames of a video."""

    mask: dict[str, Any]  # compressed run lengths of a picture of H x (T*W) pixels
    areas_T: NDArray[np.int64]  # its pixels in every frame


def joined_frames(shapes: Sequence[FrameShape], size: tuple[int, int]) -> Track:
    """One mask of the frames side by side.

    Args:
        shapes: of every frame run lengths (compressed or not), polygons, or None for an object that is not seen.
        size: (H, W) of the frames.

    Raises:
        ValueError: run lengths of another size than that of the frames.
    """
    num_pixels = size[0] * size[1]
    # Pixels at which the object begins and ends, in turns.
    bounds = [_bounds(shape, size) if shape else np.zeros(0, dtype=np.int64) for shape in shapes]
    areas_T = np.array([(bounds_R[1::2] - bounds_R[::2]).sum() for bounds_R in bounds], dtype=np.int64)
    moved = [number * num_pixels + bounds_R for number, bounds_R in enumerate(bounds)]
    bounds_R = np.concatenate([np.zeros(0, dtype=np.int64), *moved])
    # An object in the last pixel of a frame and the first of the next goes on; no run has length 0.
    begins, ends = bounds_R[::2], bounds_R[1::2]
    goes_on = ends[:-1] == begins[1:]
    begins, ends = begins[np.r_[True, ~goes_on][: len(begins)]], ends[np.r_[~goes_on, True][: len(ends)]]
    edges = np.stack([begins, ends], axis=1).ravel()
    counts = np.diff(edges, prepend=0, append=num_pixels * len(shapes)).tolist()
    if counts[-1] == 0:  # nothing outside after the last run inside
        counts.pop()
    uncompressed = {"size": [size[0], size[1] * len(shapes)], "counts": counts}
    return Track(dict(coco_mask.frPyObjects(uncompressed, *uncompressed["size"])), areas_T)


def _bounds(shape: Mapping[str, Any] | Sequence[Sequence[float]], size: tuple[int, int]) -> NDArray[np.int64]:
    """Pixels, counted by columns, at which the object begins and ends, in turns; none twice in a row."""
    if isinstance(shape, Mapping) and tuple(shape["size"]) != tuple(size):
        raise ValueError(f"a mask has (height, width) {tuple(shape['size'])}, the frames of its video {tuple(size)}")
    edges = np.cumsum(run_counts(to_rle(shape, size)["counts"]))
    if len(edges) % 2:  # the last run lies outside the object
        edges = edges[:-1]
    pairs = edges.reshape(-1, 2)
    return pairs[pairs[:, 0] < pairs[:, 1]].ravel()
