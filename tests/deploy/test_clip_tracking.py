"""Long videos in overlapping clips: one clip gives what the model gives, several are joined without a seam."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch

from mask2former.config import load_config
from mask2former.deploy import clip_tracking
from mask2former.deploy.clip_tracking import ClipTracker
from mask2former.deploy.predictor import Predictor
from mask2former.deploy.results import Segmentation, class_infos
from tests.deploy.moving_discs import WEIGHTS, DiscClip, Path, disc_clip, identities

PATHS = (Path(3, (24, 28), (58, 24)), Path(7, (70, 70), (36, 66)))


@cache
def predictor() -> Predictor:
    """The model of scenes, to which clips are given: what it finds in frames that are alike is the same."""
    overrides = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 13, "DATASETS.TEST", ("digits_panoptic_val",)]
    return Predictor.from_config(
        load_config("configs/digits/video.yaml", [*WEIGHTS, "MODEL.DEVICE", "cpu", *overrides])
    )


def tracker(**options) -> ClipTracker:
    return ClipTracker(predictor(), class_infos(predictor().metadata, 13), **options)


@pytest.fixture(scope="module")
def clip() -> DiscClip:
    return disc_clip(*PATHS, num_frames=9)


def single_clip(frames: list[np.ndarray]) -> dict:
    samples = [predictor().prepare(frame) for frame in frames]
    with torch.inference_mode():
        return predictor().model([{**samples[0], "image": [sample["image"] for sample in samples]}])


@pytest.mark.parametrize("window", [9, 30])
def test_when_one_clip_covers_the_video_the_result_is_that_of_the_model(clip: DiscClip, window: int) -> None:
    expected = single_clip(clip.frames)
    results = list(tracker(window=window, overlap=4)(clip.frames))
    assert len(results) == len(clip.frames)
    for index, (masks_THW, label, score) in enumerate(
        zip(expected["pred_masks"], expected["pred_labels"], expected["pred_scores"], strict=True)
    ):
        for frame, mask_HW in zip(results, masks_THW.numpy(), strict=True):
            # Identities are given in the order of the instances.
            segments = [segment for segment in frame.segments if segment.track_id == index + 1]
            assert bool(segments) == bool(mask_HW.any())
            for segment in segments:
                assert np.array_equal(segment.bitmap(), mask_HW)
                assert (segment.category, segment.score) == (label, pytest.approx(score, abs=1e-7))
    assert len(expected["pred_scores"]) == 10


@pytest.mark.parametrize(("window", "overlap"), [(1, 0), (3, 1), (4, 2), (4, 0), (5, 4), (8, 7)])
def test_identities_go_on_from_clip_to_clip(clip: DiscClip, window: int, overlap: int) -> None:
    results = list(tracker(window=window, overlap=overlap, threshold=0.4)(clip.frames))
    three, seven = (identities(clip, results, digit) for digit in (3, 7))
    assert set(three) == {three[0]} and set(seven) == {seven[0]}
    assert len({None, three[0], seven[0]}) == 3


@pytest.mark.parametrize(("num_frames", "window", "overlap"), [(9, 4, 2), (8, 4, 0), (7, 3, 2), (2, 4, 1), (5, 1, 0)])
def test_every_frame_comes_once_as_soon_as_no_later_clip_can_change_it(
    clip: DiscClip, num_frames: int, window: int, overlap: int
) -> None:
    num_read = 0
    marked = [np.roll(frame, 2 * number, axis=1) for number, frame in enumerate(clip.frames)]

    def read() -> Iterator[np.ndarray]:
        nonlocal num_read
        for frame in marked[:num_frames]:
            num_read += 1
            yield frame

    lags = []
    for number, _ in enumerate(tracker(window=window, overlap=overlap)(read())):
        lags.append(num_read - number)
    assert len(lags) == num_frames
    assert min(lags) >= 1 and max(lags) <= window
    if num_frames >= window:
        assert lags[0] == window  # the first leaves before the second clip is read


def test_shared_frames_are_shown_as_the_clip_has_them_that_sees_more_around_them(
    clip: DiscClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips 0-3, 2-5, 4-7 and the last one 5-8; of two shared frames each clip shows one."""
    shown: list[tuple[int, int]] = []
    original = ClipTracker._frame

    def recorded(self: ClipTracker, clip: clip_tracking._Clip, number: int) -> Segmentation:
        shown.append((clip.start, number))
        return original(self, clip, number)

    monkeypatch.setattr(ClipTracker, "_frame", recorded)
    list(tracker(window=4, overlap=2)(clip.frames))
    assert shown == [(0, 0), (0, 1), (0, 2), (2, 3), (2, 4), (4, 5), (4, 6), (5, 7), (5, 8)]


def test_where_the_size_changes_a_new_clip_begins_and_identities_go_on() -> None:
    paths = (Path(3, (30, 30), (34, 32)), Path(7, (70, 66), (66, 62)))
    small, large = disc_clip(*paths, num_frames=7), disc_clip(*paths, num_frames=7, size=128)
    mixed = DiscClip(small.frames[:3] + large.frames[3:], small.masks[:3] + large.masks[3:])
    results = list(tracker(window=3, overlap=1, threshold=0.4)(mixed.frames))
    assert [result.height for result in results] == [96] * 3 + [128] * 4
    for digit in (3, 7):
        found = identities(DiscClip(mixed.frames[:3], mixed.masks[:3]), results[:3], digit)
        found += identities(DiscClip(mixed.frames[3:], mixed.masks[3:]), results[3:], digit)
        assert set(found) == {found[0]} and found[0] is not None


def test_an_object_that_is_away_for_too_many_clips_is_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    there = disc_clip(Path(3, (40, 40), (44, 44)), num_frames=4)
    away = disc_clip(Path(7, (60, 60), (60, 60)), num_frames=8)
    frames = there.frames[:2] + away.frames + there.frames[2:]
    both = DiscClip(frames, there.masks[:2] + away.masks + there.masks[2:])

    def ends() -> list[int | None]:
        results = list(tracker(window=2, overlap=0, threshold=0.4)(frames))
        found = identities(both, results, 3)
        return [found[0], found[-1]]

    first, last = ends()
    assert first == last is not None
    monkeypatch.setattr(clip_tracking, "LOST_CLIPS", 3)
    first, last = ends()
    assert first != last and None not in (first, last)


def test_a_threshold_leaves_out_what_is_uncertain(clip: DiscClip) -> None:
    everything, certain = (list(tracker(window=9, overlap=0, threshold=value)(clip.frames)) for value in (None, 0.4))
    assert 2 <= max(len(result.segments) for result in certain) < max(len(result.segments) for result in everything)
    assert all(segment.score >= 0.4 for result in certain for segment in result.segments)


def test_without_frames_there_are_no_results() -> None:
    assert list(tracker(window=4, overlap=1)([])) == []


def test_what_is_kept_does_not_grow_with_the_video(clip: DiscClip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_tracking, "LOST_CLIPS", 2)
    track = tracker(window=3, overlap=1, threshold=0.4)
    sizes = []
    for number, _ in enumerate(track(frame for _ in range(5) for frame in clip.frames)):
        if number % 9 == 0:
            assert track._clip is not None
            sizes.append((len(track._tracks), track._clip.sightings.masks.numel(), len(track._clip.rles)))
    num_tracks, mask_sizes, num_instances = zip(*sizes, strict=True)
    assert len(sizes) == 5 and len(set(mask_sizes)) == 1
    assert max(num_tracks) <= 2 * max(num_instances)  # of two clips at most, though 22 were seen
