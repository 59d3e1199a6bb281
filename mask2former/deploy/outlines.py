"""Masks as polygons: closed lines along pixel edges, each free of holes, which COCO's rules rasterize back exactly."""

# (H, W) pixels; corners of pixels are (x, y) with 0 <= x <= W, 0 <= y <= H.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["outlines"]

Corner = tuple[int, int]
Ring = list[Corner]

# Sides of pixels as steps with the mask on their right hand: top sides run right, right sides down, and so on.
_RIGHT, _DOWN, _LEFT, _UP = (1, 0), (0, 1), (-1, 0), (0, -1)


def outlines(mask_HW: NDArray[np.bool_]) -> list[list[int]]:
    """The parts of a mask, each as [x0, y0, x1, y1, ...] along pixel edges.

    Pixels that touch at a corner only belong to different parts. A hole is joined to the line around it by a cut
    without width, that is walked down and up again: a polygon is all that COCO's format has.
    """
    rings = _rings(mask_HW)
    outer = [ring for ring in rings if _doubled_area(ring) > 0]
    # A cut goes straight up from the top of a hole. What it meets is the line around it or a hole that begins higher.
    holes = sorted((ring for ring in rings if _doubled_area(ring) < 0), key=lambda ring: min(y for _, y in ring))
    for hole in holes:
        _join(hole, outer)
    return [[value for corner in _corners_only(ring) for value in corner] for ring in outer]


def _rings(mask_HW: NDArray[np.bool_]) -> list[Ring]:
    """Closed lines through every corner on the way, clockwise (y points down) around parts, the other way in holes."""
    padded = np.pad(mask_HW, 1)
    steps: dict[tuple[Corner, Corner], None] = {}  # (corner, direction), in a fixed order
    for neighbor_HW, offset, direction in (
        (padded[:-2, 1:-1], (0, 0), _RIGHT),
        (padded[1:-1, 2:], (1, 0), _DOWN),
        (padded[2:, 1:-1], (1, 1), _LEFT),
        (padded[1:-1, :-2], (0, 1), _UP),
    ):
        rows, columns = np.nonzero(padded[1:-1, 1:-1] & ~neighbor_HW)
        for x, y in zip((columns + offset[0]).tolist(), (rows + offset[1]).tolist(), strict=True):
            steps[(x, y), direction] = None
    rings = []
    while steps:
        start = (x, y), (dx, dy) = next(iter(steps))
        ring = []
        while True:
            del steps[(x, y), (dx, dy)]
            ring.append((x, y))
            x, y = x + dx, y + dy
            # Where pixels touch at a corner there are two ways on: the right turn stays with the same pixel.
            turns = [(-dy, dx), (dx, dy), (dy, -dx)]
            way = next((turn for turn in turns if ((x, y), turn) in steps), None)
            if way is None or ((x, y), way) == start:
                break
            dx, dy = way
        rings.append(ring)
    return rings


def _doubled_area(ring: Ring) -> int:
    """Positive around parts, negative around holes."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True))


def _join(hole: Ring, outer: list[Ring]) -> None:
    x, top = min(hole, key=lambda corner: (corner[1], corner[0]))
    places = {corner: (ring, index) for ring in outer for index, corner in enumerate(ring) if corner[0] == x}
    y = max(corner_y for _, corner_y in places if corner_y < top)
    ring, index = places[x, y]
    first = hole.index((x, top))
    cut = [(x, between) for between in range(y + 1, top)]
    ring[index + 1 : index + 1] = [*cut, *hole[first:], *hole[: first + 1], *reversed(cut), (x, y)]


def _corners_only(ring: Ring) -> Ring:
    """Without the points at which the line runs straight on."""
    before, after = ring[-1:] + ring[:-1], ring[1:] + ring[:1]
    return [
        corner
        for (x0, y0), corner, (x2, y2) in zip(before, ring, after, strict=True)
        if (x0 != x2 and y0 != y2) or (x0, y0) == (x2, y2)
    ]
