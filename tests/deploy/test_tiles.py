"""The grid of tiles: it covers every pixel, weights add up to one, cells never straddle a tile's edge."""

from __future__ import annotations

import numpy as np
import pytest

from mask2former.deploy.tiles import Grid

GRIDS = [
    ((100, 230), 64, 16),
    ((65, 64), 64, 16),  # one pixel more than a tile
    ((64, 64), 64, 0),
    ((40, 500), 64, 31),
    ((1, 1), 64, 16),
    ((200, 200), 50, 0),
    ((130, 131), 64, 24),
]


@pytest.fixture(params=GRIDS, ids=str)
def grid(request):
    size, tile, overlap = request.param
    return Grid(size, tile=tile, overlap=overlap)


def test_tiles_have_one_size_and_cover_the_picture(grid):
    covered = np.zeros(grid.size, dtype=int)
    for tile in grid:
        covered[tile.rows, tile.columns] += 1
    assert covered.min() >= 1 and len(list(grid)) == len(grid)
    assert len({tile.size for tile in grid}) == 1


def test_neighbors_share_the_overlap():
    starts = sorted({tile.columns.start for tile in Grid((40, 500), tile=64, overlap=31)})
    assert max(np.diff(starts)) <= 64 - 31 and starts[-1] == 500 - 64


def test_weights_add_up_to_one_and_are_one_where_a_tile_is_alone(grid):
    total, num_tiles = np.zeros(grid.size), np.zeros(grid.size, dtype=int)
    for tile in grid:
        total[tile.rows, tile.columns] += grid.weights(tile)
        num_tiles[tile.rows, tile.columns] += 1
        assert grid.weights(tile).min() > 0
    np.testing.assert_allclose(total, 1, atol=1e-6)
    for tile in grid:
        is_alone = num_tiles[tile.rows, tile.columns] == 1
        assert (grid.weights(tile)[is_alone] == 1).all()


def test_weights_fall_off_towards_the_neighbor_only():
    first, second = Grid((64, 112), tile=64, overlap=16)
    weights = Grid((64, 112), tile=64, overlap=16).weights(first)
    assert (np.diff(weights[0, 48:]) < 0).all() and (weights[:, :48] == 1).all()


def test_cells_divide_every_tile_and_count_their_tiles(grid):
    num_tiles = np.zeros(grid.size, dtype=int)
    for tile in grid:
        num_tiles[tile.rows, tile.columns] += 1
    for tile in grid:
        seen = np.zeros(tile.size, dtype=int)
        for cell in grid.cells(tile):
            seen[cell.within(tile)] += 1
            assert (num_tiles[cell.rows, cell.columns] == cell.num_tiles).all()
        assert (seen == 1).all()


def test_what_waits_is_a_strip_not_the_picture():
    waiting = Grid((10_000, 1_000), tile=200, overlap=40).waiting()
    assert 40 * 1_000 < waiting.num_pixels < 3 * 60 * 1_000
    assert Grid((64, 64), tile=64, overlap=16).waiting() == (0, 0, 0)


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "message"),
    [
        ((0, 5), 64, 16, "no pixels"),
        ((100, 100), 64, 32, "overlap 32 must be less than half of tile 64"),
        ((100, 100), 0, 0, "tile must be above 0"),
        ((100, 100), 64, -1, "overlap not below 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(size, tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        Grid(size, tile=tile, overlap=overlap)


def test_a_picture_within_one_tile_may_be_smaller_than_the_overlap():
    (tile,) = Grid((5, 7), tile=64, overlap=60)
    assert tile.size == (5, 7)
