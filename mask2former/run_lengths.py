"""COCO's run lengths (RLE), read, drawn and written where a mask is, not everywhere it might be."""

# (H, W) pixels of the picture, B = ceil(W / 8) bytes of a row, R runs, M masks, V characters.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

__all__ = ["draw_runs", "encode_rows", "run_counts", "run_counts_of_all"]

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
    return run_counts_of_all([counts])[0]


def run_counts_of_all(texts: Sequence[str | bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths of the runs of M masks, one mask after the other.

    Args:
        texts: compressed counts.

    Returns:
        (R,), those of each mask beginning with zeros; and (M,), how many are of each mask.

    Raises:
        ValueError: a text is cut off or has other characters.
    """
    encoded = [text.encode("ascii") if isinstance(text, str) else text for text in texts]
    values_V = np.frombuffer(b"".join(encoded), dtype=np.uint8).astype(np.int64) - _FIRST_CHARACTER
    ends_M = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    if len(values_V) == 0:
        return values_V, np.zeros(len(encoded), dtype=np.int64)
    goes_on_V = (values_V & _MORE) > 0
    if values_V.min() < 0 or values_V.max() >= 2 * _MORE or goes_on_V[ends_M[ends_M > 0] - 1].any():
        raise ValueError("run lengths are damaged: no compressed counts")
    last_R = np.flatnonzero(~goes_on_V)
    first_R = np.concatenate([[0], last_R[:-1] + 1])
    num_characters_R = last_R - first_R + 1
    place_V = np.arange(len(values_V)) - np.repeat(first_R, num_characters_R)
    numbers_R = np.add.reduceat((values_V & _DATA) << (_DATA_BITS * place_V), first_R)
    is_negative_R = (values_V[last_R] & _SIGN) > 0
    numbers_R -= is_negative_R.astype(np.int64) << (_DATA_BITS * num_characters_R)
    num_runs_M = np.diff(np.searchsorted(last_R, ends_M), prepend=0)
    # From the fourth on, a count is told as its difference from the one two places before.
    start = 0
    for num_runs in num_runs_M.tolist():
        numbers = numbers_R[start : start + num_runs]
        np.cumsum(numbers[1::2], out=numbers[1::2])
        np.cumsum(numbers[2::2], out=numbers[2::2])
        start += num_runs
    return numbers_R, num_runs_M


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


def encode_rows(bits_HB: NDArray[np.uint8], width: int) -> dict[str, Any]:
    """Run lengths of a mask at one bit per pixel, with text counts as JSON files store them.

    Args:
        bits_HB: the first of eight pixels of a row in the highest bit; those beyond the width are 0.
        width: W.
    """
    height, num_bytes = bits_HB.shape
    # A bit for every pixel that differs from the one before it. Runs follow columns: above the first row is the last of
    # the column to the left. A machine word is looked at before its bits: few have any.
    changed = np.zeros(-(-height * num_bytes // 8) * 8, dtype=np.uint8)
    changed_HB = changed[: height * num_bytes].reshape(height, num_bytes)
    if height > 0:
        np.bitwise_xor(bits_HB[1:], bits_HB[:-1], out=changed_HB[1:])
        np.bitwise_xor(bits_HB[0], bits_HB[-1] >> 1, out=changed_HB[0])
        changed_HB[0, 1:] ^= bits_HB[-1, :-1] << 7
    words = changed.view(np.uint64)
    words_with_any = np.flatnonzero(words)
    bits = np.flatnonzero(np.unpackbits(words[words_with_any].view(np.uint8)).view(bool))
    row, column = np.divmod(64 * words_with_any[bits // 64] + bits % 64, 8 * num_bytes)
    places = column * height + row
    places.sort()
    # The end of a last column that is inside is noted in the padding, if there is any: there is no run after it.
    places = places[: np.searchsorted(places, height * width)]
    counts = np.diff(places, prepend=0, append=height * width)
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
