"""Segments of neighboring tiles that are the same object, and those that are not."""

from __future__ import annotations

import numpy as np
import pytest

from mask2former.deploy.seams import SeamMatcher, matched_pairs
from mask2former.deploy.tiles import Grid
from tests.deploy.painted import segment_of

SIZE = (60, 100)  # two tiles, side by side, that share the columns 40..59


def rectangle(left, right, top=20, bottom=40):
    mask = np.zeros((60, 60), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def groups(left, right, *, categories=((2,), (2,)), **settings):
    """Which segments belong together: those of the left tile and those of the right one, each in its own columns."""
    matcher = SeamMatcher(SIZE, **{"min_overlap": 0.5, "unite_stuff": True, **settings})
    for tile, masks, classes in zip(Grid(SIZE, tile=60, overlap=20), (left, right), categories, strict=True):
        matcher.add(tile, [segment_of(mask, category) for mask, category in zip(masks, classes, strict=True)])
    return matcher.groups().tolist()


def test_an_object_across_the_seam_is_one():
    assert groups([rectangle(30, 60)], [rectangle(0, 20)]) == [0, 0]


def test_objects_that_do_not_meet_in_the_strip_are_two():
    assert groups([rectangle(30, 60, 0, 15)], [rectangle(0, 20, 30, 50)]) == [0, 1]


def test_another_class_is_another_object():
    assert groups([rectangle(30, 60)], [rectangle(0, 20)], categories=((2,), (3,))) == [0, 1]


def test_objects_that_agree_too_little_are_two():
    assert groups([rectangle(30, 60, 20, 40)], [rectangle(0, 20, 35, 55)]) == [0, 1]
    assert groups([rectangle(30, 60, 20, 40)], [rectangle(0, 20, 35, 55)], min_overlap=0.1) == [0, 0]


def test_objects_apart_from_the_strip_are_never_compared():
    assert groups([rectangle(0, 30)], [rectangle(30, 60)]) == [0, 1]


def test_each_object_takes_its_best_partner_only():
    left = [rectangle(30, 60, 20, 40), rectangle(30, 60, 22, 40)]
    assert groups(left, [rectangle(0, 30, 22, 40)], categories=((2, 2), (2,))) == [0, 1, 1]


def test_a_fragment_at_the_edge_of_its_tile_joins_what_covers_it():
    # The right tile sees only the last two columns of an object that the left one sees whole; agreement is poor.
    assert groups([rectangle(30, 52)], [rectangle(0, 4, 22, 30)]) == [0, 0]


def test_a_small_object_on_a_larger_one_is_no_fragment():
    assert groups([rectangle(30, 58)], [rectangle(4, 8, 22, 30)]) == [0, 1]


def test_stuff_is_one_wherever_it_lies_unless_it_stands_for_instances():
    apart = [rectangle(0, 10)], [rectangle(50, 60)]
    assert groups(*apart, categories=((0,), (0,))) == [0, 0]
    assert groups(*apart, categories=((0,), (0,)), unite_stuff=False) == [0, 1]


def test_tiles_meet_across_corners_too():
    size = (100, 100)
    matcher = SeamMatcher(size, min_overlap=0.5, unite_stuff=True)
    picture = np.zeros(size, dtype=bool)
    picture[42:58, 42:58] = True
    for tile in Grid(size, tile=60, overlap=20):
        matcher.add(tile, [segment_of(picture[tile.rows, tile.columns], 2)])
    assert matcher.groups().tolist() == [0, 0, 0, 0]


def test_an_overlap_outside_0_and_1_is_refused():
    with pytest.raises(ValueError, match="min_overlap must be above 0 and at most 1, got 0"):
        groups([], [], categories=((), ()), min_overlap=0)


def test_pairs_of_nothing_are_none():
    masks = np.zeros((2, 9), dtype=bool)
    flags = np.ones(2, dtype=bool)
    options = {"may_match_NM": np.ones((2, 2), dtype=bool), "is_fragment_N": ~flags, "is_fragment_M": ~flags}
    assert matched_pairs(masks, masks, **options, min_overlap=0.5) == []
