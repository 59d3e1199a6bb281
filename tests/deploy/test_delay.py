"""Results that wait for later ones: flickers go, gaps are filled, and nothing is kept for long."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mask2former.data.masks import encode_rle
from mask2former.deploy.delay import delayed, frames_to_be_seen
from mask2former.deploy.results import ClassInfo, Segment, Segmentation

CLASSES = (ClassInfo("disc", (255, 0, 0), 1, True), ClassInfo("lawn", (0, 255, 0), 2, False))
SIZE = (10, 40)
LAWN = 99


def mask_at(left: int, width: int = 4) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[3:7, left : left + width] = True
    return mask


def scene(task: str = "instance", **lefts: int) -> Segmentation:
    """Discs named a, b, ... whose left sides are at these columns, in panoptic results on a lawn."""
    discs = [Segment.of(encode_rle(mask_at(left)), 0, CLASSES[0], score=0.9) for left in lefts.values()]
    identities = [ord(name) - ord("a") + 1 for name in lefts]
    segments = [Segment(**{**vars(disc), "track_id": number}) for disc, number in zip(discs, identities, strict=True)]
    if task == "instance":
        return Segmentation("instance", *SIZE, tuple(segments), None, None, CLASSES)
    label_map = np.full(SIZE, len(segments) + 1)
    for number, segment in enumerate(segments, start=1):
        label_map[segment.bitmap()] = number
    lawn = Segment.of(encode_rle(label_map == len(segments) + 1), 1, CLASSES[1], score=0.9)
    segments.append(Segment(**{**vars(lawn), "track_id": LAWN}))
    return Segmentation("panoptic", *SIZE, tuple(segments), label_map, None, CLASSES)


def names(segmentation: Segmentation) -> str:
    things = [segment.track_id for segment in segmentation.segments if segment.is_thing]
    return "".join(chr(ord("a") + identity - 1) for identity in sorted(things))


def left_of(segmentation: Segmentation, name: str) -> float:
    (segment,) = (segment for segment in segmentation.segments if segment.track_id == ord(name) - ord("a") + 1)
    return segment.box[0]


def assert_consistent(segmentation: Segmentation) -> None:
    assert segmentation.label_map is not None
    assert set(np.unique(segmentation.label_map)) - {0} == set(range(1, len(segmentation.segments) + 1))
    for number, segment in enumerate(segmentation.segments, start=1):
        pixels = segmentation.label_map == number
        assert np.array_equal(segment.bitmap(), pixels)
        columns = np.flatnonzero(pixels.any(axis=0))
        assert segment.area == pixels.sum() and (segment.box[0], segment.box[2]) == (columns[0], columns[-1] + 1)


@pytest.mark.parametrize(("latency", "expected"), [(1, 2), (2, 2), (3, 3), (4, 3), (5, 4)])
def test_more_than_half_of_the_frames_must_show_a_thing(latency: int, expected: int) -> None:
    assert frames_to_be_seen(latency) == expected


@pytest.mark.parametrize("latency", [1, 2, 3, 9])
def test_results_come_in_order_each_after_as_many_more_were_read(latency: int) -> None:
    num_read = 0

    def read() -> Iterator[Segmentation]:
        nonlocal num_read
        for left in range(6):
            num_read += 1
            yield scene(a=left)

    for number, segmentation in enumerate(delayed(read(), latency)):
        assert left_of(segmentation, "a") == number
        assert num_read == min(number + latency + 1, 6)
    assert number == 5


def test_flickers_are_left_out_and_what_stays_is_shown_from_its_first_frame_on() -> None:
    frames = [scene(a=0), scene(a=1, b=20), scene(a=2), scene(a=3, c=30), scene(a=4, c=30), scene(a=5)]
    assert [names(segmentation) for segmentation in delayed(frames, 2)] == ["a", "a", "a", "ac", "ac", "a"]


def test_at_the_end_what_is_seen_in_all_frames_left_is_shown() -> None:
    frames = [scene(a=0), scene(a=0), scene(a=0, b=10), scene(a=0, c=20)]
    assert [names(segmentation) for segmentation in delayed(frames, 3)] == ["a", "a", "a", "ac"]


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_a_gap_is_filled_along_the_way(task: str) -> None:
    frames = [scene(task) if left is None else scene(task, a=left) for left in (0, 3, 6, None, None, 15, 18)]
    results = list(delayed(frames, 3))
    assert [names(segmentation) for segmentation in results] == ["a"] * 7
    assert [left_of(segmentation, "a") for segmentation in results] == [0, 3, 6, 9, 12, 15, 18]
    for segmentation in results:
        if task == "panoptic":
            assert_consistent(segmentation)
            assert segmentation.segments[0].track_id == LAWN or len(segmentation.segments) == 2


def test_a_gap_longer_than_the_latency_stays() -> None:
    frames = [scene(a=0), scene(a=0), scene(), scene(), scene(a=9), scene(a=9), scene(a=9)]
    assert [names(segmentation) for segmentation in delayed(frames, 1)] == ["a", "a", "", "", "a", "a", "a"]


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_what_is_put_in_a_gap_lies_behind_other_things(task: str) -> None:
    frames = [scene(task, a=4, b=8), scene(task, a=5, b=8), scene(task, b=8), scene(task, a=7, b=9)]
    results = list(delayed(frames, 3))
    (hidden,) = (segment for segment in results[2].segments if segment.track_id == 1)
    assert np.array_equal(hidden.bitmap(), mask_at(6, 2))
    covered = [scene("instance", a=8, b=20), scene("instance", a=8, b=20), scene("instance", b=8), scene(a=8, b=20)]
    assert [names(segmentation) for segmentation in delayed(covered, 3)] == ["ab", "ab", "b", "ab"]


def test_pixels_of_a_flicker_become_void_and_segments_keep_their_numbers() -> None:
    flicker = scene("panoptic", b=20, a=0)
    results = list(delayed([scene("panoptic", a=0), flicker, scene("panoptic", a=0)], 1))
    assert_consistent(results[1])
    assert names(results[1]) == "a" and not results[1].label_map[mask_at(20)].any()
    assert names(flicker) == "ab"  # what was given is not changed


def test_where_frames_change_their_size_no_gap_is_filled() -> None:
    small = Segmentation("instance", 5, 20, (), None, None, CLASSES)
    results = list(delayed([scene(a=0), scene(a=0), small, scene(a=0), scene(a=0)], 2))
    assert [names(segmentation) for segmentation in results] == ["a", "a", "", "a", "a"]


def test_without_results_there_are_none() -> None:
    assert list(delayed([], 3)) == []
