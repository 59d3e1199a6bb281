"""Objects keep their identities while they move, cross and hide, and the results stay those of single pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mask2former.deploy import frame_tracking
from mask2former.deploy.frame_tracking import FrameTracker
from mask2former.deploy.results import Segmentation, class_infos, segmentation_of
from tests.deploy.moving_discs import DiscClip, Path, digits_predictor, disc_clip, identities

CROSSING = (Path(3, (20, 50), (76, 44)), Path(7, (76, 56), (20, 50)))


@pytest.fixture(scope="module")
def crossing() -> DiscClip:
    return disc_clip(*CROSSING, num_frames=16)


def tracker(task: str = "panoptic", **options) -> FrameTracker:
    predictor = digits_predictor()
    return FrameTracker(predictor, class_infos(predictor.metadata, 13), task, **options)


def run(clip: DiscClip, **options) -> list[Segmentation]:
    track = tracker(**options)
    return [track(frame) for frame in clip.frames]


@pytest.mark.parametrize("options", [{}, {"smoothing": 0.3}, {"task": "instance"}], ids=str)
def test_discs_that_cross_keep_their_identities(crossing: DiscClip, options: dict) -> None:
    results = run(crossing, **options)
    three, seven = identities(crossing, results, 3), identities(crossing, results, 7)
    # Half hidden, a digit may be taken for another one: a stranger for a while. Before and after, it is who it was.
    assert set(seven) == {seven[0]} and seven[0] is not None
    assert three[0] == three[4] == three[-1] == three[-4] is not None
    assert three[0] != seven[0]


def test_a_disc_that_was_hidden_for_too_long_is_a_new_one(crossing: DiscClip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_tracking, "LOST_FRAMES", 2)
    three = identities(crossing, run(crossing), 3)
    assert three[0] != three[-1] and None not in (three[0], three[-1])


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_segments_are_those_of_single_pictures(crossing: DiscClip, task: str) -> None:
    """But for instances of low scores and second instances of one object."""
    predictor = digits_predictor()
    classes = class_infos(predictor.metadata, 13)
    for frame, result in zip(crossing.frames[:10:3], run(crossing, task=task)[:10:3], strict=True):
        alone = segmentation_of(predictor(frame), task, classes)
        if task == "panoptic":
            assert np.array_equal(result.label_map, alone.label_map)
            assert [segment.category for segment in result.segments] == [s.category for s in alone.segments]
        scores = {(str(segment.mask), segment.category): segment.score for segment in alone.segments}
        for segment in result.segments:
            assert segment.track_id is not None
            assert scores[str(segment.mask), segment.category] == pytest.approx(segment.score, abs=1e-5)
        best = [segment for segment in alone.segments if segment.score >= 0.9]
        assert {segment.category for segment in best} <= {segment.category for segment in result.segments}


def test_no_identity_occurs_twice_in_a_frame_and_stuff_has_one_for_each_class(crossing: DiscClip) -> None:
    stuff: dict[int, set[int | None]] = {}
    for result in [*run(crossing), *run(crossing, task="instance", threshold=0.05)]:
        track_ids = [segment.track_id for segment in result.segments]
        assert len(set(track_ids)) == len(track_ids)
        for segment in result.segments:
            if not segment.is_thing:
                stuff.setdefault(segment.category, set()).add(segment.track_id)
    assert len(stuff) >= 2 and all(len(track_ids) == 1 for track_ids in stuff.values())


def test_a_higher_threshold_leaves_out_what_is_uncertain(crossing: DiscClip) -> None:
    few, many = (run(crossing, task="instance", threshold=threshold) for threshold in (0.97, 0.2))
    assert sum(len(result.segments) for result in few) < sum(len(result.segments) for result in many)
    assert all(segment.score >= 0.97 for result in few for segment in result.segments)


def test_smoothing_mixes_the_logits_of_an_object_with_those_of_the_frame_before() -> None:
    """A still picture that suddenly becomes darker: the change arrives by the share that is not of the past."""
    clip = disc_clip(Path(3, (48, 48), (48, 48)), num_frames=2)
    first, second = clip.frames[0], (clip.frames[0] * 0.6).astype(np.uint8)

    def logits_after(smoothing: float, *frames: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        track = tracker(smoothing=smoothing)
        for frame in frames:
            track(frame)
        (thing,) = (known for known in track._tracks if known.kind == 3 and known.last_seen == len(frames) - 1)
        assert thing.logits is not None
        return thing.logits

    old, new = logits_after(1e-6, first), logits_after(1e-6, second)
    mixed = logits_after(0.25, first, second)
    for before, now, result in zip(old, new, mixed, strict=True):
        assert (before - now).abs().max() > 0.1
        torch.testing.assert_close(result, 0.25 * before + 0.75 * now, rtol=1e-3, atol=1e-3)


def test_smoothing_carries_an_object_over_a_frame_in_which_it_is_uncertain(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = disc_clip(Path(3, (44, 48), (52, 48)), num_frames=6)
    model = digits_predictor().model
    predict = model.predict
    calls: list[int] = []

    def uncertain_once(samples: list) -> list:
        (prediction,) = predict(samples)
        calls.append(len(calls))
        if len(calls) % len(clip.frames) == 4:  # every class gets 0.35 of what it had
            some_class = prediction.class_logits[:, :-1].logsumexp(dim=1)
            prediction.class_logits[:, -1] = some_class + np.log(0.65 / 0.35)
        return [prediction]

    monkeypatch.setattr(model, "predict", uncertain_once)
    plain, smooth = (identities(clip, run(clip, smoothing=smoothing), 3) for smoothing in (0.0, 0.5))
    assert plain[3] is None and set(smooth) == {smooth[0]} and smooth[0] is not None


def test_when_the_resolution_changes_objects_stay_who_they_are() -> None:
    paths = (Path(3, (30, 30), (40, 34)), Path(7, (70, 66), (60, 60)))
    small, large = disc_clip(*paths, num_frames=8), disc_clip(*paths, num_frames=8, size=144)
    track = tracker(smoothing=0.3)
    results = [track((small if number < 4 else large).frames[number]) for number in range(8)]
    assert [result.height for result in results] == [96] * 4 + [144] * 4
    for digit in (3, 7):
        found = identities(DiscClip(small.frames[:4], small.masks[:4]), results[:4], digit)
        found += identities(DiscClip(large.frames[4:], large.masks[4:]), results[4:], digit)
        assert set(found) == {found[0]} and found[0] is not None


def test_what_is_kept_does_not_grow_with_the_video(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_tracking, "LOST_FRAMES", 5)
    clip = disc_clip(*CROSSING, num_frames=10)
    track = tracker(smoothing=0.5)
    sizes = []
    for _ in range(4):
        for frame in clip.frames:
            track(frame)
        tensors = [tensor for known in track._tracks for tensor in (known.embedding, known.mask, *(known.logits or ()))]
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)  # no views of more
        sizes.append(sum(tensor.nbytes for tensor in tensors))
    assert sizes[1:] == [sizes[1]] * 3
