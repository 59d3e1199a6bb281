"""Clean-up of masks: each step does what it says, to its own segments only, and leaves the result given as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from mask2former.deploy.mask_cleanup import (
    MaskCleanup,
    close_masks,
    drop_doubles,
    drop_small,
    drop_weak,
    fill_holes,
    open_masks,
)
from tests.deploy.painted import result_of

SIZE = (40, 50)


def rectangle(top, bottom, left, right):
    mask = np.zeros(SIZE, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def masks_of(result):
    return [segment.bitmap() for segment in result.segments]


def assert_consistent(result):
    for number, segment in enumerate(result.segments, start=1):
        mask = segment.bitmap()
        assert segment.area == mask.sum() > 0
        if result.label_map is not None:
            label = segment.category if result.task == "semantic" else number
            assert np.array_equal(result.label_map == label, mask)


@pytest.fixture(params=["instance", "panoptic", "semantic"])
def task(request):
    return request.param


def test_weak_segments_are_dropped(task):
    if task == "semantic":
        pytest.skip("pixels have the scores there")
    masks = [rectangle(0, 10, 0, 10), rectangle(20, 30, 0, 10), rectangle(0, 10, 30, 40)]
    result = drop_weak(result_of(task, masks, [2, 3, 0], [0.4, 0.5, None]), 0.5)
    assert [segment.name for segment in result.segments] == ["dog", "sky"]
    assert_consistent(result)


def test_weak_pixels_of_a_semantic_result_belong_to_no_class():
    result = result_of("semantic", [rectangle(0, 40, 0, 25), rectangle(0, 40, 25, 50)], [0, 1])
    result.confidence[:, 20:] = 0.3
    weak = drop_weak(result, 0.5)
    assert [segment.name for segment in weak.segments] == ["sky"]
    assert (weak.label_map[:, 20:] == -1).all() and (weak.label_map[:, :20] == 0).all()
    assert_consistent(weak)


def test_small_segments_are_dropped():
    masks = [rectangle(0, 10, 0, 10) | rectangle(30, 32, 30, 32), rectangle(20, 30, 0, 9)]
    for task in ("instance", "panoptic"):
        result = drop_small(result_of(task, masks, [2, 2]), 100)
        assert len(result.segments) == 1 and np.array_equal(masks_of(result)[0], masks[0])
        assert_consistent(result)


def test_of_a_class_small_parts_are_dropped():
    large, small = rectangle(0, 10, 0, 10), rectangle(30, 32, 30, 32)
    result = drop_small(result_of("semantic", [large | small, rectangle(20, 22, 0, 9)], [0, 1]), 50)
    assert len(result.segments) == 1 and np.array_equal(masks_of(result)[0], large)
    assert (result.label_map[small] == -1).all()
    assert_consistent(result)


def test_small_holes_are_filled(task):
    mask = rectangle(5, 30, 5, 40) & ~rectangle(10, 13, 10, 13) & ~rectangle(15, 25, 20, 30)
    (filled,) = masks_of(fill_holes(result_of(task, [mask], [0]), 9))
    assert np.array_equal(filled, mask | rectangle(10, 13, 10, 13))


def test_a_bay_is_no_hole(task):
    mask = rectangle(5, 30, 5, 40) & ~rectangle(10, 12, 5, 20)
    (same,) = masks_of(fill_holes(result_of(task, [mask], [0]), 1000))
    assert np.array_equal(same, mask)


def test_a_hole_in_which_another_segment_lies_stays_its_own(task):
    other = rectangle(10, 13, 10, 13)
    mask = rectangle(5, 30, 5, 40) & ~other
    result = fill_holes(result_of(task, [mask, other], [0, 2]), 9)
    expected = mask | other if task == "instance" else mask
    assert np.array_equal(masks_of(result)[0], expected) and np.array_equal(masks_of(result)[1], other)
    assert_consistent(result)


def test_opening_removes_what_is_thin(task):
    mask = rectangle(10, 30, 10, 30)
    (opened,) = masks_of(open_masks(result_of(task, [mask | rectangle(20, 21, 0, 50)], [0]), 2))
    # The corners of the rectangle are rounded by the disc.
    assert np.array_equal(opened[12:28], mask[12:28]) and opened.sum() >= mask.sum() - 4 * 4


def test_opening_leaves_straight_edges_where_they_are_also_at_the_edge_of_the_picture(task):
    mask = rectangle(0, 40, 0, 20)
    (opened,) = masks_of(open_masks(result_of(task, [mask], [0]), 3))
    assert np.array_equal(opened, mask)


def test_a_segment_that_is_thin_altogether_is_gone(task):
    result = open_masks(result_of(task, [rectangle(5, 6, 0, 50), rectangle(20, 30, 20, 30)], [0, 1]), 2)
    assert [segment.name for segment in result.segments] == ["ground"]
    assert_consistent(result)


def test_closing_joins_what_is_near(task):
    mask = rectangle(10, 30, 10, 20) | rectangle(10, 30, 22, 32)
    (closed,) = masks_of(close_masks(result_of(task, [mask], [0]), 3))
    assert closed[13:27, 10:32].all() and not (closed & ~rectangle(10, 30, 10, 32)).any() and not (mask & ~closed).any()


def test_closing_takes_nothing_from_others_and_nothing_from_the_edge_of_the_picture(task):
    gap = rectangle(10, 30, 20, 22)
    result = close_masks(result_of(task, [rectangle(10, 30, 2, 20) | rectangle(10, 30, 22, 32), gap], [0, 2]), 3)
    first, second = masks_of(result)
    assert np.array_equal(second, gap) and not first[:, :2].any() and not first[:10].any()
    assert (first & gap).any() == (task == "instance")
    assert_consistent(result)


def test_nms_keeps_the_better_of_two_that_overlap():
    masks = [rectangle(0, 20, 0, 20), rectangle(0, 20, 2, 22), rectangle(0, 20, 0, 20), rectangle(20, 40, 30, 50)]
    result = drop_doubles(result_of("instance", masks, [2, 2, 3, 2], [0.6, 0.7, 0.5, 0.4]), 0.5)
    assert [segment.score for segment in result.segments] == [0.7, 0.5, 0.4]
    assert len(drop_doubles(result_of("instance", masks, [2, 2, 3, 2], [0.6, 0.7, 0.5, 0.4]), 0.9).segments) == 4


def test_nms_is_for_instances():
    with pytest.raises(ValueError, match="segments of a panoptic result never overlap"):
        drop_doubles(result_of("panoptic", [rectangle(0, 5, 0, 5)], [2]), 0.5)


def test_steps_left_at_their_defaults_do_nothing(task):
    result = result_of(task, [rectangle(0, 5, 0, 5)], [2], [0.1])
    assert MaskCleanup()(result) is result


def test_all_steps_work_together_and_leave_the_result_given_alone():
    ring = rectangle(5, 25, 5, 25) & ~rectangle(10, 12, 10, 12)
    result = result_of("instance", [ring, ring, rectangle(30, 33, 30, 33)], [2, 2, 2], [0.9, 0.8, 0.7])
    before = copy.deepcopy(result.segments)
    cleanup = MaskCleanup(threshold=0.1, open_radius=1, close_radius=1, hole_area=10, min_area=50, nms_overlap=0.5)
    (segment,) = cleanup(result).segments
    assert segment.score == 0.9 and segment.bitmap()[10:12, 10:12].all()
    assert result.segments == before


@pytest.mark.parametrize("step", [drop_weak, drop_small, fill_holes, open_masks, close_masks])
def test_a_result_without_segments_stays_one(step, task):
    result = step(result_of(task, [], [], size=SIZE), 1)
    assert result.segments == () and (result.height, result.width) == SIZE


@pytest.mark.parametrize(("step", "value"), [(drop_weak, 1.5), (drop_weak, -0.1), (drop_doubles, 2.0)])
def test_shares_outside_0_and_1_are_refused(step, value):
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        step(result_of("instance", [], [], size=SIZE), value)


@pytest.mark.parametrize("settings", [{"open_radius": -1}, {"min_area": -5}, {"nms_overlap": -0.5}, {"threshold": 2}])
def test_settings_out_of_range_are_refused_when_they_are_made(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        MaskCleanup(**settings)
