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
from mask2former.run_lengths import run_counts_of_all

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
        ValueError: run lengths of another size than that of the frames, or that do not fill it.
    """
    num_pixels = size[0] * size[1]
    texts = [_compressed_counts(shape, size) for shape in shapes]
    counts_R, num_runs_T = run_counts_of_all(texts)
    first_T = np.cumsum(num_runs_T) - num_runs_T
    frame_R = np.repeat(np.arange(len(texts)), num_runs_T)
    is_inside_R = (np.arange(len(counts_R)) - first_T[frame_R]) % 2 == 1
    sizes_T, areas_T = (_sums(counts, frame_R, len(texts)) for counts in (counts_R, counts_R * is_inside_R))
    if counts_R.min(initial=0) < 0 or (sizes_T != num_pixels).any():
        raise ValueError(f"run lengths are damaged: they do not fill {size[0]}x{size[1]} pixels")
    # What begins where something else ended: runs of no pixel are not there, and one may go on in the next frame.
    is_run_R = counts_R > 0
    is_inside_R, ends_R = is_inside_R[is_run_R], np.cumsum(counts_R)[is_run_R]
    is_last_R = np.append(is_inside_R[1:] != is_inside_R[:-1], True)[: len(ends_R)]
    counts = np.diff(ends_R[is_last_R], prepend=0)
    if is_inside_R[:1].any():
        counts = np.concatenate([[0], counts])
    uncompressed = {"size": [size[0], size[1] * len(texts)], "counts": counts}
    return Track(dict(coco_mask.frPyObjects(uncompressed, *uncompressed["size"])), areas_T)


def _compressed_counts(shape: FrameShape, size: tuple[int, int]) -> str | bytes:
    shape = shape or []
    if isinstance(shape, Mapping) and tuple(shape["size"]) != tuple(size):
        raise ValueError(f"a mask has (height, width) {tuple(shape['size'])}, the frames of its video {tuple(size)}")
    counts: str | bytes | list[int] = to_rle(shape, size)["counts"]
    if isinstance(counts, (str, bytes)):
        return counts
    if any(not 0 <= count <= size[0] * size[1] for count in counts):
        raise ValueError(f"run lengths are damaged: they do not fill {size[0]}x{size[1]} pixels")
    compressed: bytes = coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"]
    return compressed


def _sums(counts_R: NDArray[np.int64], frame_R: NDArray[np.int64], num_frames: int) -> NDArray[np.int64]:
    sums_T = np.zeros(num_frames, dtype=np.int64)
    np.add.at(sums_T, frame_R, counts_R)
    return sums_T
