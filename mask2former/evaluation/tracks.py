"""Run lengths of tracks: an object in all frames of a video as one mask.

COCO's run lengths follow the columns of a picture. Those of T frames of H x W pixels, one after the other, are
therefore the run lengths of one picture of H x (T*W) pixels, in which the frames stand side by side.
"""
# T frames of (H, W) pixels, R runs.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

__all__ = ["frame_areas", "joined_frames"]

#: Run lengths of one frame, COCO's or polygons; None where the object is not seen.
FrameShape = Mapping[str, Any] | Sequence[Sequence[float]] | None


def joined_frames(shapes: Sequence[FrameShape], size: tuple[int, int]) -> dict[str, Any]:
    """One mask of the frames side by side.

    Args:
        shapes: of every frame run lengths (compressed or not), polygons, or None for an object that is not seen.
        size: (H, W) of the frames.

    Returns:
        Compressed run lengths of a picture of H x (T*W) pixels.

    Raises:
        ValueError: run lengths of another size than that of the frames.
    """
    num_pixels = size[0] * size[1]
    # Pixels at which the object begins and ends, in turns.
    bounds = [number * num_pixels + _bounds(run_lengths(shape, size)) for number, shape in enumerate(shapes) if shape]
    bounds_R = np.concatenate([np.zeros(0, dtype=np.int64), *bounds])
    # An object in the last pixel of a frame and the first of the next goes on; no run has length 0.
    begins, ends = bounds_R[::2], bounds_R[1::2]
    goes_on = ends[:-1] == begins[1:]
    begins, ends = begins[np.r_[True, ~goes_on][: len(begins)]], ends[np.r_[~goes_on, True][: len(ends)]]
    edges = np.stack([begins, ends], axis=1).ravel()
    counts = np.diff(edges, prepend=0, append=num_pixels * len(shapes)).tolist()
    if counts[-1] == 0:  # nothing outside after the last run inside
        counts.pop()
    uncompressed = {"size": [size[0], size[1] * len(shapes)], "counts": counts}
    return dict(coco_mask.frPyObjects(uncompressed, *uncompressed["size"]))


def frame_areas(shapes: Sequence[FrameShape], size: tuple[int, int]) -> NDArray[np.int64]:
    """(T,) pixels of the object in every frame; see `joined_frames`."""
    return np.array([int(coco_mask.area(run_lengths(shape, size))) if shape else 0 for shape in shapes], dtype=np.int64)


def run_lengths(shape: Mapping[str, Any] | Sequence[Sequence[float]], size: tuple[int, int]) -> dict[str, Any]:
    """Compressed run lengths of any of COCO's kinds of masks."""
    if not isinstance(shape, Mapping):
        return dict(coco_mask.merge(coco_mask.frPyObjects(list(shape), *size)))
    if tuple(shape["size"]) != tuple(size):
        raise ValueError(f"a mask has (height, width) {tuple(shape['size'])}, the frames of its video {tuple(size)}")
    if isinstance(shape["counts"], (str, bytes)):
        return dict(shape)
    return dict(coco_mask.frPyObjects(dict(shape), *size))


def _bounds(rle: Mapping[str, Any]) -> NDArray[np.int64]:
    """Pixels, counted by columns, at which the object begins and ends, in turns; none twice in a row."""
    counts_R = _counts(rle["counts"])
    edges = np.cumsum(counts_R)
    if len(edges) % 2:  # the last run lies outside the object
        edges = edges[:-1]
    pairs = edges.reshape(-1, 2)
    return pairs[pairs[:, 0] < pairs[:, 1]].ravel()


def _counts(text: str | bytes) -> NDArray[np.int64]:
    """The run lengths behind COCO's compressed text: pixels outside, inside, outside, ...

    Numbers stand in groups of 5 bits, the lowest first, one for each character (from "0" on); the sixth bit says that
    more follow, and the highest of the last five is the sign. From the fourth on, numbers are differences from the last
    but one.
    """
    characters = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, dtype=np.uint8) - 48
    if not len(characters):
        return np.zeros(0, dtype=np.int64)
    is_last = (characters & 0x20) == 0
    number = np.cumsum(is_last) - is_last  # which run a character belongs to
    first = np.flatnonzero(np.r_[True, is_last[:-1]])
    place = np.arange(len(characters)) - first[number]
    values_R = np.add.reduceat((characters & 0x1F).astype(np.int64) << (5 * place), first)
    last = np.flatnonzero(is_last)
    is_negative = (characters[last] & 0x10) != 0
    values_R = values_R - (is_negative.astype(np.int64) << (5 * (place[last] + 1)))
    values_R[1::2] = np.cumsum(values_R[1::2])
    values_R[2::2] = np.cumsum(values_R[2::2])
    return values_R
