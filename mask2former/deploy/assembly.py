"""From the results of tiles, one after the other, to the result of the whole picture."""

# (H, W) pixels of the picture, (h, w) of a tile or cell, K classes.

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask2former.deploy.mask_runs import (
    LabelRuns,
    Runs,
    bitmap,
    moved,
    row_strips,
    runs_of_mask,
    runs_of_rle,
    united,
)
from mask2former.deploy.results import ClassInfo, Segment, Segmentation
from mask2former.deploy.scratch import ArrayStore
from mask2former.deploy.seams import SeamMatcher
from mask2former.deploy.segments import class_segments, with_runs
from mask2former.deploy.tiles import Cell, Grid, Tile

__all__ = ["Assembly", "InstanceAssembly", "PanopticAssembly", "SemanticAssembly"]

Valid = NDArray[np.bool_] | None


class Assembly(ABC):
    """Takes every tile of a grid once, row by row."""

    @abstractmethod
    def add(self, tile: Tile, result: Any, valid_hw: Valid) -> None:
        """The result of one tile; None for one without any valid pixel.

        Args:
            valid_hw: where the picture has data; None: everywhere.
        """

    @abstractmethod
    def value(self) -> Segmentation:
        """To be called once, after all tiles."""


class SemanticAssembly(Assembly):
    """Scores are averaged over the tiles that see a pixel, by the weights of the grid; the best class wins.

    Results of tiles are scores, (K, h, w) float32. Only cells that wait for another tile are kept as scores. Pixels
    without data get the class -1.
    """

    def __init__(self, grid: Grid, classes: Sequence[ClassInfo], store: ArrayStore) -> None:
        self._grid = grid
        self._classes = tuple(classes)
        self._store = store
        # The first to ask for memory: they are read and written with every tile.
        self._waiting = _WaitingScores(grid, len(classes), store)
        self._labels_HW = store.zeros(grid.size, np.int32)
        self._confidence_HW = store.zeros(grid.size, np.float32)

    def add(self, tile: Tile, result: NDArray[np.float32] | None, valid_hw: Valid) -> None:
        weights_hw = self._grid.weights(tile)
        for cell in self._grid.cells(tile):
            rows, columns = cell.within(tile)
            scores_Khw = None if result is None else result[:, rows, columns]
            if cell.num_tiles == 1:
                self._finish(cell, scores_Khw, None if valid_hw is None else valid_hw[rows, columns])
                continue
            if self._waiting.add(cell, scores_Khw, weights_hw[rows, columns]):
                sums_Khw = self._waiting.take(cell)
                self._finish(cell, sums_Khw, None if valid_hw is None else valid_hw[rows, columns])
        if tile.columns.stop == self._grid.size[1]:
            self._store.release()

    def _finish(self, cell: Cell, scores_Khw: NDArray[np.float32] | None, valid_hw: Valid) -> None:
        place = (cell.rows, cell.columns)
        labels_hw, confidence_hw = self._labels_HW[place], self._confidence_HW[place]
        if scores_Khw is None:
            labels_hw[...] = -1
            return
        best_hw = scores_Khw.argmax(axis=0)
        labels_hw[...] = best_hw
        best_score_hw = np.take_along_axis(scores_Khw, best_hw[None], axis=0)[0]
        total_hw = scores_Khw.sum(axis=0)
        # Where there is no evidence at all, every class is as probable.
        confidence_hw[...] = 1 / len(scores_Khw)
        np.divide(best_score_hw, total_hw, out=confidence_hw, where=total_hw > 0)
        if valid_hw is not None:
            labels_hw[~valid_hw], confidence_hw[~valid_hw] = -1, 0

    def value(self) -> Segmentation:
        segments = class_segments(self._labels_HW, self._confidence_HW, self._classes)
        self._store.release()
        return Segmentation("semantic", *self._grid.size, segments, self._labels_HW, self._confidence_HW, self._classes)


class PanopticAssembly(Assembly):
    """Where tiles overlap, a pixel belongs to the segment of the tile that counts most there and has one.

    Results of tiles are `Segmentation`s. A segment's score is the mean of those of its pieces, by area.
    """

    def __init__(self, grid: Grid, classes: Sequence[ClassInfo], store: ArrayStore, *, min_overlap: float) -> None:
        self._grid = grid
        self._classes = tuple(classes)
        self._store = store
        self._matcher = SeamMatcher(grid.size, min_overlap=min_overlap, unite_stuff=True)
        self._pieces: list[Segment] = []
        self._labels_HW = store.zeros(grid.size, np.int32)  # 1 + number of the piece, until pieces are merged
        # Of cells that wait: the label that counts most so far, how much it does, and the number of tiles seen.
        self._waiting: dict[tuple[int, int], tuple[NDArray[np.int32], NDArray[np.float32], int]] = {}

    def add(self, tile: Tile, result: Segmentation | None, valid_hw: Valid) -> None:
        segments = () if result is None else result.segments
        numbers = self._matcher.add(tile, segments)
        self._pieces += segments
        if result is None:
            piece_hw = np.zeros(tile.size, np.int32)
        else:
            assert result.label_map is not None, "a panoptic result has a label map"
            piece_hw = np.array([0, *(number + 1 for number in numbers)], np.int32)[result.label_map]
            if valid_hw is not None:
                piece_hw[~valid_hw] = 0
        weights_hw = self._grid.weights(tile)
        for cell in self._grid.cells(tile):
            self._claim(cell, piece_hw[cell.within(tile)], weights_hw[cell.within(tile)])
        if tile.columns.stop == self._grid.size[1]:
            self._store.release()

    def _claim(self, cell: Cell, piece_hw: NDArray[np.int32], weights_hw: NDArray[np.float32]) -> None:
        if cell.num_tiles > 1:
            nothing = np.zeros_like(piece_hw), np.zeros_like(weights_hw), 0
            owner_hw, claims_hw, num_seen = self._waiting.pop(cell.place, nothing)
            is_stronger_hw = (piece_hw > 0) & (weights_hw > claims_hw)
            owner_hw[is_stronger_hw], claims_hw[is_stronger_hw] = piece_hw[is_stronger_hw], weights_hw[is_stronger_hw]
            if num_seen + 1 < cell.num_tiles:
                self._waiting[cell.place] = owner_hw, claims_hw, num_seen + 1
                return
            piece_hw = owner_hw
        self._labels_HW[cell.rows, cell.columns] = piece_hw

    def value(self) -> Segmentation:
        height, width = self._grid.size
        group_of_piece = self._matcher.groups()
        label_of_piece = np.concatenate([[0], 1 + group_of_piece]).astype(np.int32)
        runs = LabelRuns(height)
        for rows in row_strips(self._grid.size):
            labels_rW = label_of_piece[self._labels_HW[rows]]
            self._labels_HW[rows] = labels_rW
            runs.add(rows.start, labels_rW, lowest=1)
            self._store.release()
        runs_of_label = runs.value()
        groups = [label - 1 for label in runs_of_label]
        final_label = np.zeros(len(label_of_piece), np.int32)
        final_label[list(runs_of_label)] = np.arange(1, 1 + len(groups))
        for rows in row_strips(self._grid.size):
            self._labels_HW[rows] = final_label[self._labels_HW[rows]]
            self._store.release()
        merged = _merged(self._pieces, group_of_piece, groups)
        segments = [
            with_runs(segment, runs, self._grid.size)
            for segment, runs in zip(merged, runs_of_label.values(), strict=True)
        ]
        return Segmentation("panoptic", height, width, tuple(segments), self._labels_HW, None, self._classes)


class InstanceAssembly(Assembly):
    """Pieces of an object are united; its score is the mean of theirs, by area.

    Results of tiles are `Segmentation`s. Only run lengths are kept.
    """

    def __init__(self, grid: Grid, classes: Sequence[ClassInfo], *, min_overlap: float) -> None:
        self._grid = grid
        self._classes = tuple(classes)
        self._matcher = SeamMatcher(grid.size, min_overlap=min_overlap, unite_stuff=False)
        self._pieces: list[Segment] = []
        self._runs: list[Runs] = []  # of the pieces, in the picture

    def add(self, tile: Tile, result: Segmentation | None, valid_hw: Valid) -> None:
        if result is None:
            return
        segments = [segment for segment in result.segments if segment.area > 0]
        self._matcher.add(tile, segments)
        self._pieces += segments
        origin = (tile.columns.start, tile.rows.start)
        for segment in segments:
            runs = runs_of_rle(segment.mask)
            if valid_hw is not None:
                mask_hw = bitmap(runs, tile.size[0], (0, 0, tile.size[1], tile.size[0]))
                runs = runs_of_mask(mask_hw & valid_hw, tile.size[0])
            self._runs.append(moved(runs, tile.size, self._grid.size[0], origin))

    def value(self) -> Segmentation:
        height, width = self._grid.size
        group_of_piece = self._matcher.groups()
        groups, group_index = np.unique(group_of_piece, return_inverse=True)
        runs_of_group: list[list[Runs]] = [[] for _ in groups]
        for index, runs in zip(group_index.tolist(), self._runs, strict=True):
            runs_of_group[index].append(runs)
        merged = _merged(self._pieces, group_of_piece, groups.tolist())
        segments = [
            with_runs(segment, united(np.concatenate(runs)), self._grid.size)
            for segment, runs in zip(merged, runs_of_group, strict=True)
        ]
        segments = [segment for segment in segments if segment.area > 0]
        segments.sort(key=lambda segment: -(segment.score or 0))
        return Segmentation("instance", height, width, tuple(segments), None, None, self._classes)


class _WaitingScores:
    """Weighted sums of the scores of cells that wait for another tile."""

    def __init__(self, grid: Grid, num_classes: int, store: ArrayStore) -> None:
        most = grid.waiting()
        self._num_classes = num_classes
        self._sums: dict[tuple[int, int], tuple[NDArray[np.float32], int | None]] = {}  # with the slot they lie in
        self._num_seen: dict[tuple[int, int], int] = {}
        self._slots: NDArray[np.float32] | None = None
        if not store.grants(4 * num_classes * most.num_pixels):
            # A file has places of one size, so that a place can be used again by another cell.
            self._slots = store.zeros((most.num_cells, num_classes * most.largest_cell), np.float32, on_disk=True)
            self._free = list(range(most.num_cells))

    def add(self, cell: Cell, scores_Khw: NDArray[np.float32] | None, weights_hw: NDArray[np.float32]) -> bool:
        """Scores of one tile; None adds nothing. Returns whether it was the last tile of the cell."""
        if scores_Khw is not None:
            if cell.place not in self._sums:
                self._sums[cell.place] = self._place(weights_hw.shape)
                np.multiply(scores_Khw, weights_hw, out=self._sums[cell.place][0])
            else:
                self._sums[cell.place][0][...] += scores_Khw * weights_hw
        self._num_seen[cell.place] = self._num_seen.get(cell.place, 0) + 1
        return self._num_seen[cell.place] == cell.num_tiles

    def take(self, cell: Cell) -> NDArray[np.float32] | None:
        """The sums of a cell, which is forgotten; to be read before anything else is added."""
        del self._num_seen[cell.place]
        sums_Khw, slot = self._sums.pop(cell.place, (None, None))
        if slot is not None:
            self._free.append(slot)
        return sums_Khw

    def _place(self, size: tuple[int, ...]) -> tuple[NDArray[np.float32], int | None]:
        if self._slots is None:
            return np.empty((self._num_classes, *size), np.float32), None
        slot = self._free.pop()
        length = self._num_classes * size[0] * size[1]
        return self._slots[slot, :length].reshape(self._num_classes, *size), slot


def _merged(pieces: Sequence[Segment], group_of_piece: NDArray[np.int64], groups: Sequence[int]) -> list[Segment]:
    """For each group its first piece, with the mean of the pieces' scores, by area; masks are still the piece's."""
    areas = np.array([piece.area for piece in pieces], dtype=np.float64)
    scores = np.array([piece.score or 0 for piece in pieces], dtype=np.float64)
    num_groups = len(pieces)
    total = np.bincount(group_of_piece, areas, minlength=num_groups)
    weighted = np.bincount(group_of_piece, areas * scores, minlength=num_groups)
    num_pieces = np.bincount(group_of_piece, minlength=num_groups)
    merged = []
    for group in groups:
        first = pieces[group]
        is_whole = num_pieces[group] == 1 or first.score is None
        score = first.score if is_whole else float(weighted[group] / max(1, total[group]))
        merged.append(dataclasses.replace(first, score=score))
    return merged
