"""How a picture is cut into overlapping tiles, and how much each of them counts where they overlap."""

# (H, W) pixels of the picture, (h, w) of a tile, N tiles along one side.

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cell", "Grid", "Tile"]


class Tile(NamedTuple):
    """A rectangle of the picture that goes through the network at once."""

    place: tuple[int, int]  # (row, column) among the tiles
    rows: slice
    columns: slice

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


class Cell(NamedTuple):
    """A rectangle of the picture whose pixels all lie in the same tiles."""

    place: tuple[int, int]  # (row, column) among the cells
    rows: slice
    columns: slice
    num_tiles: int

    @property
    def num_pixels(self) -> int:
        """Its area."""
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)

    def within(self, tile: Tile) -> tuple[slice, slice]:
        """Rows and columns of the cell, counted from the tile's first."""
        return (
            slice(self.rows.start - tile.rows.start, self.rows.stop - tile.rows.start),
            slice(self.columns.start - tile.columns.start, self.columns.stop - tile.columns.start),
        )


class Waiting(NamedTuple):
    """Cells of which some tiles are done and others are not."""

    num_cells: int
    num_pixels: int
    largest_cell: int  # pixels


class Grid:
    """Tiles of one size, spread evenly, that overlap by at least `overlap` pixels.

    A side that a tile covers is not cut. Weights fall off smoothly (a squared sine) over each overlap and add up to 1
    at every pixel; at the edges of the picture they do not fall off.

    Args:
        size: (H, W) of the picture.
        tile: sides of a tile in pixels, both the same.
        overlap: pixels, less than half of `tile`.
    """

    def __init__(self, size: tuple[int, int], *, tile: int, overlap: int) -> None:
        if min(size) < 1:
            raise ValueError(f"the picture has no pixels: its (height, width) is {tuple(size)}")
        if tile < 1 or overlap < 0:
            raise ValueError(f"tile must be above 0 and overlap not below 0, got {tile} and {overlap}")
        if max(size) > tile and 2 * overlap >= tile:
            raise ValueError(f"overlap {overlap} must be less than half of tile {tile}: choose larger tiles")
        self.size = size
        self._rows, self._columns = (_Side(length, tile, overlap) for length in size)

    def __len__(self) -> int:
        return len(self._rows.starts) * len(self._columns.starts)

    def __iter__(self) -> Iterator[Tile]:
        """Tiles row by row."""
        for row, top in enumerate(self._rows.starts):
            for column, left in enumerate(self._columns.starts):
                yield Tile(
                    (row, column),
                    slice(top, top + self._rows.tile),
                    slice(left, left + self._columns.tile),
                )

    def weights(self, tile: Tile) -> NDArray[np.float32]:
        """(h, w), in (0, 1]; exactly 1 where no other tile lies."""
        row, column = tile.place
        return np.outer(self._rows.weights[row], self._columns.weights[column])

    def cells(self, tile: Tile) -> Iterator[Cell]:
        """The cells that make up a tile."""
        for row, rows, num_above in self._rows.cells(tile.rows):
            for column, columns, num_beside in self._columns.cells(tile.columns):
                yield Cell((row, column), rows, columns, num_above * num_beside)

    def waiting(self) -> Waiting:
        """What waits for tiles to come, at the most, while tiles are worked on row by row."""
        seen: dict[tuple[int, int], int] = {}
        num_pixels = most_cells = most_pixels = largest_cell = 0
        for tile in self:
            for cell in self.cells(tile):
                if cell.num_tiles == 1:
                    continue
                seen[cell.place] = seen.get(cell.place, 0) + 1
                if seen[cell.place] == 1:
                    num_pixels += cell.num_pixels
                    largest_cell = max(largest_cell, cell.num_pixels)
                    most_cells, most_pixels = max(most_cells, len(seen)), max(most_pixels, num_pixels)
                elif seen[cell.place] == cell.num_tiles:
                    num_pixels -= cell.num_pixels
                    del seen[cell.place]
        return Waiting(most_cells, most_pixels, largest_cell)


class _Side:
    """The same for one side of the picture."""

    def __init__(self, length: int, tile: int, overlap: int) -> None:
        self.tile = min(tile, length)
        num_tiles = 1 if length <= tile else -(-(length - overlap) // (tile - overlap))
        self.starts = [index * (length - self.tile) // max(1, num_tiles - 1) for index in range(num_tiles)]
        edges = sorted({*self.starts, *(start + self.tile for start in self.starts)})
        self._cells = [slice(low, high) for low, high in zip(edges, edges[1:], strict=False)]
        overlaps = [low + self.tile - high for low, high in zip(self.starts, self.starts[1:], strict=False)]
        self.widest_overlap = max(overlaps, default=0)
        raw = [self._ramps(before, after) for before, after in zip([0, *overlaps], [*overlaps, 0], strict=True)]
        total = np.zeros(length)
        for start, weights in zip(self.starts, raw, strict=True):
            total[start : start + self.tile] += weights
        self.weights = [
            (weights / total[start : start + self.tile]).astype(np.float32)
            for start, weights in zip(self.starts, raw, strict=True)
        ]

    def _ramps(self, before: int, after: int) -> NDArray[np.float64]:
        weights = np.ones(self.tile)
        for overlap, side in ((before, weights), (after, weights[::-1])):
            side[:overlap] *= np.sin(np.pi / 2 * (np.arange(overlap) + 0.5) / max(1, overlap)) ** 2
        return weights

    def cells(self, part: slice) -> Iterator[tuple[int, slice, int]]:
        """Index, extent and number of tiles of every cell inside a tile."""
        for index, cell in enumerate(self._cells):
            if part.start <= cell.start and cell.stop <= part.stop:
                yield index, cell, sum(start <= cell.start < start + self.tile for start in self.starts)
