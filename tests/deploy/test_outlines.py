"""Outlines: COCO's rules rasterize them back to the mask they came from."""

from __future__ import annotations

import numpy as np
import pytest

from mask2former.data.masks import decode_segmentations
from mask2former.deploy.outlines import outlines


def rasterized(polygons, size):
    return decode_segmentations([polygons], size)[0]


def mask_of(*rows):
    return np.array([[character == "#" for character in row] for row in rows])


def test_a_rectangle_has_four_corners():
    assert outlines(mask_of("....", ".##.", ".##.")) == [[1, 1, 3, 1, 3, 3, 1, 3]]


def test_an_empty_mask_has_no_outline():
    assert outlines(np.zeros((3, 4), dtype=bool)) == []


def test_parts_that_touch_at_a_corner_are_two():
    assert len(outlines(mask_of("#.", ".#"))) == 2


@pytest.mark.parametrize(
    "rows",
    [
        ("###", "#.#", "###"),
        ("######", "#.##.#", "######", "#.##.#", "######"),
        ("#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######"),
        ("####", "#.##", "##.#", "####"),
        ("#####", "##.##", "#.#.#", "##.##", "#####"),
    ],
)
def test_holes_stay_holes(rows):
    mask = mask_of(*rows)
    np.testing.assert_array_equal(rasterized(outlines(mask), mask.shape), mask)


@pytest.mark.parametrize("seed", range(20))
def test_any_mask_comes_back_exactly(seed):
    generator = np.random.default_rng(seed)
    mask = generator.random((int(generator.integers(1, 24)), int(generator.integers(1, 24)))) < generator.random()
    np.testing.assert_array_equal(rasterized(outlines(mask), mask.shape), mask)
