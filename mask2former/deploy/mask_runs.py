"""Masks as runs of pixels: what a mask of a large picture takes follows its outline, not the size of the picture.

Pixels are counted down the columns, as COCO's run lengths do: pixel (x, y) of a picture of height H is number x H + y.
"""

# (H, W) pixels of the picture, (h, w) of a part of it, r rows, R runs.

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mask2former.run_lengths import run_counts

__all__ = [
    "LabelRuns",
    "Runs",
    "area",
    "bitmap",
    "box",
    "check_num_pixels",
    "moved",
    "rle_of_runs",
    "row_strips",
    "runs_of_mask",
    "runs_of_rle",
    "united",
]

#: (R, 2) int64: numbers of the first pixel of each run and of the one after its last.
Runs = NDArray[np.int64]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1; the last two exclusive

PIXELS_AT_ONCE = 2**22  # of a map that is gone through by strips: what that takes beside it stays small

_MAX_PIXELS = 2**32 - 1  # pycocotools counts in 32 bits


def runs_of_mask(mask_hw: NDArray[np.bool_], height: int, origin: tuple[int, int] = (0, 0)) -> Runs:
    """Runs of a mask of a part of the picture, none longer than a column.

    Args:
        mask_hw: bool.
        height: H.
        origin: (x, y) of the part's first pixel in the picture.
    """
    framed_wh = np.zeros((mask_hw.shape[1], mask_hw.shape[0] + 2), dtype=bool)
    framed_wh[:, 1:-1] = mask_hw.T
    column, row = np.nonzero(framed_wh[:, 1:] != framed_wh[:, :-1])
    places = (origin[0] + column.astype(np.int64)) * height + origin[1] + row
    return places.reshape(-1, 2)


def runs_of_rle(rle: Mapping[str, Any]) -> Runs:
    """Runs of COCO's run lengths, compressed or not."""
    ends = np.cumsum(run_counts(rle["counts"]))
    runs: Runs = ends[: len(ends) // 2 * 2].reshape(-1, 2)
    return runs[runs[:, 0] < runs[:, 1]]


def moved(runs: Runs, part: tuple[int, int], height: int, origin: tuple[int, int]) -> Runs:
    """Runs of a part (h, w) as runs of the picture of height H, whose pixel (x, y) = `origin` is the part's first."""
    pieces = _by_columns(runs, part[0])
    column = pieces[:, :1] // part[0]
    return pieces - column * part[0] + (origin[0] + column) * height + origin[1]


def united(runs: Runs) -> Runs:
    """The same pixels in as few runs as there can be, ascending; those given may overlap."""
    if not len(runs):
        return runs
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    reached = np.maximum.accumulate(runs[:, 1])
    is_first = np.concatenate([[True], runs[1:, 0] > reached[:-1]])
    is_last = np.concatenate([is_first[1:], [True]])
    return np.stack([runs[is_first, 0], reached[is_last]], axis=1)


def area(runs: Runs) -> int:
    """Pixels of runs that do not overlap."""
    return int((runs[:, 1] - runs[:, 0]).sum())


def box(runs: Runs, height: int) -> Box:
    """Tight box around ascending runs; zeros where there are none."""
    if not len(runs):
        return 0, 0, 0, 0
    left, right = int(runs[0, 0]) // height, int(runs[-1, 1] - 1) // height
    top, bottom = runs[:, 0] % height, (runs[:, 1] - 1) % height
    if (runs[:, 0] // height != (runs[:, 1] - 1) // height).any():  # from the bottom of a column to the top of the next
        return left, 0, right + 1, height
    return left, int(top.min()), right + 1, int(bottom.max()) + 1


def bitmap(runs: Runs, height: int, part: Box) -> NDArray[np.bool_]:
    """(h, w) bool: the part of a mask that lies in a box.

    Args:
        runs: united.
        height: H.
    """
    left, top, right, bottom = part
    runs = np.clip(runs, left * height, right * height) - left * height
    pieces = _by_columns(runs[runs[:, 0] < runs[:, 1]], height)
    column = pieces[:, 0] // height
    rows = np.clip(pieces - column[:, None] * height - top, 0, bottom - top)
    is_inside = rows[:, 0] < rows[:, 1]
    # +1 where a run begins, -1 where it ends: united runs of one column never touch.
    steps_wh = np.zeros((right - left, bottom - top + 1), dtype=np.int8)
    steps_wh[column[is_inside], rows[is_inside, 0]] = 1
    steps_wh[column[is_inside], rows[is_inside, 1]] = -1
    inside_wh = np.cumsum(steps_wh[:, :-1], axis=1, dtype=np.int8)
    return np.ascontiguousarray(inside_wh.T).view(np.bool_)


def rle_of_runs(runs: Runs, size: tuple[int, int]) -> dict[str, Any]:
    """COCO run lengths with text counts.

    Args:
        runs: united.
        size: (H, W).
    """
    counts = np.diff(runs.ravel(), prepend=0, append=size[0] * size[1])
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    rle = coco_mask.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)
    return {"size": [int(side) for side in size], "counts": rle["counts"].decode("ascii")}


def row_strips(size: tuple[int, int]) -> Iterator[slice]:
    """Some rows at a time of a picture (H, W), from the top."""
    step = max(1, PIXELS_AT_ONCE // size[1])
    for top in range(0, size[0], step):
        yield slice(top, min(top + step, size[0]))


def check_num_pixels(size: tuple[int, int]) -> None:
    """Raises ValueError for a picture (H, W) whose masks cannot be written as COCO's run lengths."""
    if size[0] * size[1] > _MAX_PIXELS:
        raise ValueError(
            f"a picture of {size[0]} x {size[1]} has more pixels than COCO's run lengths can count ({_MAX_PIXELS:,}): "
            "cut it into parts"
        )


class LabelRuns:
    """Collects the runs of every label of a map from its rows."""

    def __init__(self, height: int) -> None:
        self._height = height
        self._labels: list[NDArray[np.int64]] = []
        self._runs: list[Runs] = []

    def add(self, first_row: int, labels_rW: NDArray[np.integer[Any]], *, lowest: int) -> None:
        """Some rows; labels below `lowest` are left out."""
        labels_Wr = np.ascontiguousarray(labels_rW.T)
        is_start_Wr = np.ones(labels_Wr.shape, dtype=bool)
        np.not_equal(labels_Wr[:, 1:], labels_Wr[:, :-1], out=is_start_Wr[:, 1:])
        column, row = np.nonzero(is_start_Wr)
        label = labels_Wr[column, row].astype(np.int64)
        start = column.astype(np.int64) * self._height + first_row + row
        # A run ends where the next one of its column begins, the last one with these rows.
        num_rows = labels_Wr.shape[1]
        is_last = np.concatenate([column[1:] != column[:-1], [True]])
        length = np.where(is_last, num_rows - row, np.concatenate([row[1:], [0]]) - row)
        is_kept = label >= lowest
        self._labels.append(label[is_kept])
        self._runs.append(np.stack([start, start + length], axis=1)[is_kept])

    def value(self) -> dict[int, Runs]:
        """United runs of each label that occurs, ascending."""
        labels = np.concatenate([np.zeros(0, np.int64), *self._labels])
        runs = np.concatenate([np.zeros((0, 2), np.int64), *self._runs])
        order = np.argsort(labels, kind="stable")
        labels, runs = labels[order], runs[order]
        found, num_runs = np.unique(labels, return_counts=True)
        ends = np.cumsum(num_runs)
        return {
            int(label): united(runs[start:end]) for label, start, end in zip(found, ends - num_runs, ends, strict=True)
        }


def _by_columns(runs: Runs, height: int) -> Runs:
    """The same runs, cut where a column ends."""
    first, last = runs[:, 0] // height, (runs[:, 1] - 1) // height
    num_columns = last - first + 1
    place = np.arange(num_columns.sum()) - np.repeat(np.cumsum(num_columns) - num_columns, num_columns)
    column = np.repeat(first, num_columns) + place
    start = np.maximum(np.repeat(runs[:, 0], num_columns), column * height)
    end = np.minimum(np.repeat(runs[:, 1], num_columns), (column + 1) * height)
    return np.stack([start, end], axis=1)
