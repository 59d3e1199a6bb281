"""Masks as runs: every operation agrees with the same one on whole arrays and with pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask2former.deploy.mask_runs import (
    LabelRuns,
    area,
    bitmap,
    box,
    check_num_pixels,
    moved,
    rle_of_runs,
    row_strips,
    runs_of_mask,
    runs_of_rle,
    united,
)

SIZE = (13, 17)
MASKS = {
    "random": np.random.default_rng(0).random(SIZE) < 0.4,
    "empty": np.zeros(SIZE, dtype=bool),
    "full": np.ones(SIZE, dtype=bool),
    "two full columns": np.repeat((np.arange(SIZE[1]) // 2 == 3)[None], SIZE[0], axis=0),
    "last pixel": np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) == SIZE[0] * SIZE[1] - 1,
    "first pixel": np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) == 0,
}


@pytest.fixture(params=MASKS, ids=str)
def mask(request):
    return MASKS[request.param]


def whole(runs, size=SIZE):
    return bitmap(runs, size[0], (0, 0, size[1], size[0]))


def test_a_mask_survives_the_way_to_runs_and_back(mask):
    assert np.array_equal(whole(united(runs_of_mask(mask, SIZE[0]))), mask)


def test_run_lengths_are_those_of_pycocotools(mask):
    expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    runs = united(runs_of_mask(mask, SIZE[0]))
    assert rle_of_runs(runs, SIZE) == {"size": list(SIZE), "counts": expected["counts"].decode()}
    assert np.array_equal(runs_of_rle(rle_of_runs(runs, SIZE)), runs)


def test_area_and_box_are_those_of_the_mask(mask):
    runs = united(runs_of_mask(mask, SIZE[0]))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    expected = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if mask.any() else (0, 0, 0, 0)
    assert area(runs) == mask.sum() and box(runs, SIZE[0]) == expected


@pytest.mark.parametrize("part", [(0, 0, 17, 13), (3, 2, 9, 11), (6, 0, 8, 13), (16, 12, 17, 13)])
def test_a_bitmap_shows_any_part(mask, part):
    left, top, right, bottom = part
    runs = united(runs_of_mask(mask, SIZE[0]))
    assert np.array_equal(bitmap(runs, SIZE[0], part), mask[top:bottom, left:right])


def test_a_part_is_moved_to_its_place_in_the_picture(mask):
    picture = np.zeros((30, 40), dtype=bool)
    picture[5:18, 21:38] = mask
    assert np.array_equal(
        united(moved(united(runs_of_mask(mask, 13)), SIZE, 30, (21, 5))), united(runs_of_mask(picture, 30))
    )
    assert np.array_equal(united(runs_of_mask(mask, 30, (21, 5))), united(runs_of_mask(picture, 30)))


def test_a_union_is_that_of_the_masks():
    first, second = MASKS["random"], MASKS["random"][::-1, ::-1]
    runs = np.concatenate([runs_of_mask(first, SIZE[0]), runs_of_mask(second, SIZE[0])])
    assert np.array_equal(united(runs), united(runs_of_mask(first | second, SIZE[0])))


@pytest.mark.parametrize("rows_at_once", [1, 4, 13])
def test_runs_of_labels_do_not_depend_on_how_the_map_is_cut(rows_at_once):
    labels = np.random.default_rng(1).integers(-1, 4, SIZE)
    collected = LabelRuns(SIZE[0])
    for top in range(0, SIZE[0], rows_at_once):
        collected.add(top, labels[top : top + rows_at_once], lowest=0)
    runs = collected.value()
    assert list(runs) == [0, 1, 2, 3]
    for label, found in runs.items():
        assert np.array_equal(found, united(runs_of_mask(labels == label, SIZE[0])))


def test_a_map_without_labels_has_no_runs():
    collected = LabelRuns(SIZE[0])
    assert collected.value() == {}
    collected.add(0, np.zeros(SIZE, dtype=np.int32), lowest=1)
    assert collected.value() == {}


def test_strips_cover_all_rows_once():
    rows = list(row_strips((5000, 3000)))
    assert len(rows) > 1 and [row for part in rows for row in range(part.start, part.stop)] == list(range(5000))


def test_more_pixels_than_run_lengths_can_count_are_refused():
    check_num_pixels((65535, 65537))
    with pytest.raises(ValueError, match="cut it into parts"):
        check_num_pixels((65536, 65536))
