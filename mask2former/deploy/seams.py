"""Which segments of neighboring tiles are the same object: those that agree where the tiles overlap."""

# N segments of one tile, M of another, P pixels that the tiles share.

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mask2former.deploy.mask_runs import bitmap, runs_of_rle
from mask2former.deploy.results import Segment
from mask2former.deploy.tiles import Tile

__all__ = ["SeamMatcher", "matched_pairs"]

Box = tuple[int, int, int, int]  # x0, y0, x1, y1; the last two exclusive


class SeamMatcher:
    """Takes the segments of tiles, row by row of the tiles, and finds which of them belong together.

    Two things of a class are one if their masks agree in the strip that both tiles see: intersection over union at
    least `min_overlap`, each with its best partner. A thing that is cut off by its tile's edge and lies in the strip
    altogether is a fragment: it belongs to the thing that covers at least that share of it. Stuff of a class is one.

    Args:
        size: (H, W) of the picture.
        min_overlap: in (0, 1].
        unite_stuff: False treats stuff as things, which is right where segments are instances.
    """

    def __init__(self, size: tuple[int, int], *, min_overlap: float, unite_stuff: bool) -> None:
        if not 0 < min_overlap <= 1:
            raise ValueError(f"min_overlap must be above 0 and at most 1, got {min_overlap}")
        self._size = size
        self._min_overlap = min_overlap
        self._unite_stuff = unite_stuff
        self._parents: list[int] = []
        self._stuff: dict[int, int] = {}  # the number that a class of stuff got first
        self._recent: list[_TileSegments] = []

    def add(self, tile: Tile, segments: Sequence[Segment]) -> list[int]:
        """Numbers of the segments, counted from 0 over all tiles; see `groups`."""
        numbers = list(range(len(self._parents), len(self._parents) + len(segments)))
        self._parents += numbers
        for number, segment in zip(numbers, segments, strict=True):
            if self._unite_stuff and not segment.is_thing:
                self._join(self._stuff.setdefault(segment.category, number), number)
        # Tiles come row by row: what ends above this one meets no tile to come.
        self._recent = [other for other in self._recent if other.tile.rows.stop > tile.rows.start]
        things = [index for index, segment in enumerate(segments) if segment.is_thing or not self._unite_stuff]
        this = _TileSegments(tile, [segments[index] for index in things], [numbers[index] for index in things])
        for other in self._recent:
            for first, second in self._pairs(other, this):
                self._join(other.numbers[first], this.numbers[second])
        self._recent.append(this)
        return numbers

    def groups(self) -> NDArray[np.int64]:
        """For each number the smallest one that belongs to the same segment."""
        return np.array([self._root(number) for number in range(len(self._parents))], dtype=np.int64)

    def _pairs(self, first: _TileSegments, second: _TileSegments) -> list[tuple[int, int]]:
        shared = _common(first.tile, second.tile)
        if shared is None:
            return []
        indices_N, masks_NP = first.within(shared)
        indices_M, masks_MP = second.within(shared)
        if not len(indices_N) or not len(indices_M):
            return []
        classes_N = np.array([first.segments[index].category for index in indices_N])
        classes_M = np.array([second.segments[index].category for index in indices_M])
        pairs = matched_pairs(
            masks_NP,
            masks_MP,
            may_match_NM=classes_N[:, None] == classes_M,
            is_fragment_N=np.array([first.is_fragment(index, shared, self._size) for index in indices_N]),
            is_fragment_M=np.array([second.is_fragment(index, shared, self._size) for index in indices_M]),
            min_overlap=self._min_overlap,
        )
        return [(indices_N[n], indices_M[m]) for n, m in pairs]

    def _join(self, first: int, second: int) -> None:
        low, high = sorted((self._root(first), self._root(second)))
        self._parents[high] = low

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            # Each look shortens the path for the next one.
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number


def matched_pairs(
    masks_NP: NDArray[np.bool_],
    masks_MP: NDArray[np.bool_],
    *,
    may_match_NM: NDArray[np.bool_],
    is_fragment_N: NDArray[np.bool_],
    is_fragment_M: NDArray[np.bool_],
    min_overlap: float,
) -> list[tuple[int, int]]:
    """Pairs (n, m) of masks of the same pixels that show the same object.

    Args:
        masks_NP, masks_MP: the masks of two tiles where both tiles lie.
        may_match_NM: pairs to consider, say those of the same class.
        is_fragment_N, is_fragment_M: masks that any mask may take up which covers them.
        min_overlap: least intersection over union, or covered share of a fragment.
    """
    common_NM = masks_NP.astype(np.float32) @ masks_MP.astype(np.float32).T
    areas_N, areas_M = masks_NP.sum(axis=1), masks_MP.sum(axis=1)
    iou_NM = common_NM / np.maximum(1, areas_N[:, None] + areas_M - common_NM) * may_match_NM
    pairs = []
    free_NM = np.ones_like(may_match_NM)
    for place in np.argsort(-iou_NM, axis=None, kind="stable"):
        n, m = (int(index) for index in np.unravel_index(place, iou_NM.shape))
        if iou_NM[n, m] < min_overlap:
            break
        if free_NM[n, m]:
            pairs.append((n, m))
            free_NM[n] = free_NM[:, m] = False
    common_NM = common_NM * may_match_NM
    for n in np.flatnonzero(is_fragment_N & free_NM.any(axis=1)).tolist():
        m = int(common_NM[n].argmax())
        if common_NM[n, m] >= min_overlap * areas_N[n]:
            pairs.append((n, m))
    for m in np.flatnonzero(is_fragment_M & free_NM.any(axis=0)).tolist():
        n = int(common_NM[:, m].argmax())
        if common_NM[n, m] >= min_overlap * areas_M[m]:
            pairs.append((n, m))
    return pairs


class _TileSegments(NamedTuple):
    tile: Tile
    segments: list[Segment]
    numbers: list[int]

    def within(self, shared: Box) -> tuple[list[int], NDArray[np.bool_]]:
        """Which segments reach into a box of the picture, and their masks there, one row each: (N, P)."""
        height = self.tile.size[0]
        part = self._from_tile(shared)
        indices, masks = [], []
        for index, segment in enumerate(self.segments):
            x0, y0, x1, y1 = segment.box
            if x0 >= part[2] or y0 >= part[3] or x1 <= part[0] or y1 <= part[1]:
                continue
            mask_hw = bitmap(runs_of_rle(segment.mask), height, part)
            if mask_hw.any():
                indices.append(index)
                masks.append(mask_hw.ravel())
        return indices, np.array(masks)

    def is_fragment(self, index: int, shared: Box, size: tuple[int, int]) -> bool:
        """Whether a segment lies in the box altogether and is cut off by an edge of the tile inside the picture."""
        left, top, right, bottom = self._from_tile(shared)
        x0, y0, x1, y1 = self.segments[index].box
        if x0 < left or y0 < top or x1 > right or y1 > bottom:
            return False
        rows, columns = self.tile.rows, self.tile.columns
        height, width = self.tile.size
        return bool(
            (x0 <= 0 < columns.start)
            or (y0 <= 0 < rows.start)
            or (x1 >= width and columns.stop < size[1])
            or (y1 >= height and rows.stop < size[0])
        )

    def _from_tile(self, box: Box) -> Box:
        left, top = self.tile.columns.start, self.tile.rows.start
        return box[0] - left, box[1] - top, box[2] - left, box[3] - top


def _common(first: Tile, second: Tile) -> Box | None:
    left, right = max(first.columns.start, second.columns.start), min(first.columns.stop, second.columns.stop)
    top, bottom = max(first.rows.start, second.rows.start), min(first.rows.stop, second.rows.stop)
    return (left, top, right, bottom) if left < right and top < bottom else None
