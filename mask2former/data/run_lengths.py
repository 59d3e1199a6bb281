"""COCO's run lengths (RLE), read and drawn where a mask is, not everywhere it might be."""

# (H, W) pixels of the picture, R runs.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["draw_runs", "run_counts"]

# A count is written in characters of six bits, the lowest five first; each is 48 plus the bits.
_FIRST_CHARACTER, _DATA_BITS = 48, 5
_DATA, _SIGN, _MORE = 0b11111, 0b10000, 0b100000


def run_counts(counts: str | bytes | Sequence[int]) -> NDArray[np.int64]:
    """Lengths of the runs, alternately of zeros and ones, beginning with zeros: (R,).

    Args:
        counts: compressed, as JSON files and pycocotools have them, or a list of the lengths.

    Raises:
        ValueError: the text is cut off or has other characters.
    """
    if not isinstance(counts, (str, bytes)):
        return np.asarray(counts, dtype=np.int64)
    text = counts.encode("ascii") if isinstance(counts, str) else counts
    values = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - _FIRST_CHARACTER
    if len(values) == 0:
        return values
    if values.min() < 0 or values.max() >= 2 * _MORE or values[-1] & _MORE:
        raise ValueError("run lengths are damaged: no compressed counts")
    last = np.flatnonzero((values & _MORE) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(values)) - np.repeat(first, last - first + 1)
    numbers = np.add.reduceat((values & _DATA) << (_DATA_BITS * place), first)
    is_negative = (values[last] & _SIGN) > 0
    numbers -= is_negative.astype(np.int64) << (_DATA_BITS * (last - first + 1))
    # From the fourth on, a count is told as its difference from the one two places before.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def draw_runs(rle: Mapping[str, Any], canvas_HW: NDArray[np.bool_]) -> bool:
    """Set the pixels of a mask in an all-false canvas; only the columns that it reaches are touched.

    Args:
        rle: run lengths of the canvas's size; only `counts` are read.
        canvas_HW: contiguous.

    Returns:
        Whether there is any pixel.
    """
    height, width = canvas_HW.shape
    counts = run_counts(rle["counts"])
    if counts.min(initial=0) < 0 or counts.sum() != height * width:
        raise ValueError(f"run lengths are damaged: they do not fill {height}x{width} pixels")
    is_inside = np.arange(len(counts)) % 2 == 1
    drawn = np.flatnonzero(is_inside & (counts > 0))
    if not len(drawn):
        return False
    ends = np.cumsum(counts)
    # Runs follow columns. Those between the first and the last column that the mask reaches:
    left, right = int(ends[drawn[0] - 1]) // height, -(-int(ends[drawn[-1]]) // height)
    ends = np.clip(ends, left * height, right * height)
    parts = ends - np.concatenate([[left * height], ends[:-1]])
    columns = np.repeat(is_inside.view(np.uint8), parts).reshape(right - left, height)
    canvas_HW[:, left:right] = cv2.transpose(columns).view(np.bool_)
    return True
