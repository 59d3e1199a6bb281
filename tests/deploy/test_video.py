"""The entry to videos: lazily read, checked before anything is read, and every option does something."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from torch import nn

from mask2former.deploy import frame_tracking
from mask2former.deploy.predictor import Predictor
from mask2former.deploy.video import segment_video, video_tasks
from tests.deploy.moving_discs import DiscClip, Path, digits_predictor, disc_clip, identities
from tests.test_video_model import DECODER, NO_IMAGE_TASKS, VIDEO
from tests.tiny_model import tiny_model


def small_predictor(*overrides: object) -> Predictor:
    """An untrained model, of images unless the overrides say otherwise."""
    return Predictor(model=tiny_model(*overrides), metadata=Metadata(), min_size=64, max_size=128)


def video_predictor() -> Predictor:
    return small_predictor(*VIDEO, *DECODER, *NO_IMAGE_TASKS)


def noise(num_frames: int, size: tuple[int, int] = (64, 64)) -> Iterator[np.ndarray]:
    for seed in range(num_frames):
        yield np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip() -> DiscClip:
    return disc_clip(Path(3, (30, 30), (60, 30)), Path(7, (66, 66), (40, 66)), num_frames=6)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_every_task_gives_one_result_for_each_frame_in_order(clip: DiscClip, task: str) -> None:
    results = list(segment_video(iter(clip.frames), digits_predictor(), task=task))
    assert [result.index for result in results] == list(range(6))
    assert all(result.frame is frame for result, frame in zip(results, clip.frames, strict=True))
    for result in results:
        assert (result.segmentation.task, result.segmentation.height, result.segmentation.width) == (task, 96, 96)
        assert {"digit_3", "digit_7"} <= {segment.name for segment in result.segmentation.segments}
        if task != "semantic":
            assert all(segment.track_id is not None for segment in result.segmentation.segments)


def test_tasks_are_those_of_the_model_and_the_first_is_the_default(clip: DiscClip) -> None:
    assert video_tasks(digits_predictor()) == ("panoptic", "instance", "semantic")
    assert video_tasks(video_predictor()) == ("instance",)
    assert next(segment_video(clip.frames, digits_predictor())).segmentation.task == "panoptic"


class _Halves(nn.Module):
    """Stands in for a model without queries."""

    def forward(self, batch: list[dict]) -> list[dict]:
        scores = torch.zeros(2, batch[0]["height"], batch[0]["width"])
        scores[0, :, :2], scores[1, :, 2:] = 1, 1
        return [{"sem_seg": scores}]


def test_models_without_queries_give_semantic_results() -> None:
    metadata = Metadata(stuff_classes=["left", "right"])
    predictor = Predictor(model=_Halves(), metadata=metadata, min_size=0, max_size=64)
    (result,) = segment_video(noise(1, (4, 6)), predictor)
    assert [segment.name for segment in result.segmentation.segments] == ["left", "right"]
    assert result.segmentation.label_map.tolist() == [[0, 0, 1, 1, 1, 1]] * 4


@pytest.mark.parametrize(
    ("is_video", "options", "message"),
    [
        (False, {"window": 4}, "window and overlap are for models of videos"),
        (False, {"overlap": 0}, "window and overlap are for models of videos"),
        (True, {"smoothing": 0.5}, "smoothing and latency are for models of images"),
        (True, {"latency": 1}, "smoothing and latency are for models of images"),
        (True, {"task": "panoptic"}, "task 'panoptic' is not among .*: instance"),
        (True, {"window": 0}, "window=0"),
        (True, {"window": 4, "overlap": 4}, "window=4 .*overlap=4"),
        (True, {"overlap": -1}, "overlap=-1"),
        (False, {"smoothing": 1.0}, "smoothing must be"),
        (False, {"smoothing": -0.1}, "smoothing must be"),
        (False, {"latency": -1}, "latency must be"),
        (False, {"task": "semantic", "latency": 2}, "together with smoothing"),
        (False, {"task": "semantic", "threshold": 0.5}, "threshold is for segments"),
    ],
)
def test_options_that_are_wrong_or_have_no_effect_are_refused_before_a_frame_is_read(
    is_video: bool, options: dict, message: str
) -> None:
    def unread() -> Iterator[np.ndarray]:
        raise AssertionError("a frame was read")
        yield

    predictor = video_predictor() if is_video else small_predictor()
    with pytest.raises(ValueError, match=message):
        segment_video(unread(), predictor, **options)


@pytest.mark.parametrize(
    "frame", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), None]
)
def test_a_bad_frame_is_named_and_those_before_it_have_their_results(frame: object) -> None:
    results = segment_video([*noise(2), frame], small_predictor())
    assert [next(results).index, next(results).index] == [0, 1]
    with pytest.raises(ValueError, match=r"frame 2 must be an \(H, W, 3\) uint8 RGB array"):
        next(results)


@pytest.mark.parametrize("options", [{}, {"latency": 2}, {"task": "semantic", "smoothing": 0.5}])
def test_without_frames_there_are_no_results(options: dict) -> None:
    assert list(segment_video([], small_predictor(), **options)) == []


def test_a_video_model_gives_no_results_without_frames_and_one_for_a_single_frame() -> None:
    assert list(segment_video([], video_predictor())) == []
    for options in ({}, {"window": 1}):
        (result,) = segment_video(noise(1), video_predictor(), **options)
        assert result.index == 0 and result.segmentation.task == "instance"


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"task": "panoptic"}, 1),
        ({"task": "instance", "smoothing": 0.5}, 1),
        ({"task": "semantic", "smoothing": 0.5, "latency": 3}, 4),
        ({"task": "panoptic", "latency": 3}, 4),
    ],
    ids=str,
)
def test_no_more_frames_are_held_than_the_latency_needs(options: dict, most: int) -> None:
    assert most_frames_held(segment_video, small_predictor(), options) == most


def test_a_video_model_holds_no_more_frames_than_a_clip_has() -> None:
    assert most_frames_held(segment_video, video_predictor(), {"window": 4, "overlap": 1}) == 4


def most_frames_held(segment, predictor: Predictor, options: dict) -> int:
    """Frames that are alive when a result has just arrived, at most, in a video of 30."""
    alive: list[weakref.ref] = []

    def read() -> Iterator[np.ndarray]:
        for frame in noise(30):
            alive.append(weakref.ref(frame))
            yield frame
            del frame

    most = 0
    for result in segment(read(), predictor, **options):
        most = max(most, sum(reference() is not None for reference in alive))
        del result
    return most


def test_tensors_do_not_become_more_while_a_video_goes_on(clip: DiscClip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_tracking, "LOST_FRAMES", 3)

    def num_tensors() -> int:
        gc.collect()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    stream = segment_video((clip.frames[index % 6] for index in range(31)), digits_predictor(), smoothing=0.3)
    counts = [num_tensors() for result in stream if result.index in (12, 18, 24, 30)]
    assert counts == [counts[0]] * 4


def test_smoothed_semantic_results_are_not_those_of_single_frames(clip: DiscClip) -> None:
    plain, smooth, late = (
        [
            result.segmentation.label_map
            for result in segment_video(clip.frames, digits_predictor(), task="semantic", **o)
        ]
        for o in ({}, {"smoothing": 0.7}, {"smoothing": 0.7, "latency": 2})
    )
    assert np.array_equal(plain[0], smooth[0])  # nothing came before
    assert (plain[5] != smooth[5]).any() and (smooth[2] != late[2]).any()
    assert np.array_equal(smooth[5], late[5])  # nothing comes after


def test_latency_fills_the_gap_of_an_object_that_a_frame_does_not_show(clip: DiscClip) -> None:
    frames = list(clip.frames)
    frames[3] = disc_clip(Path(7, (66, 66), (40, 66)), num_frames=6).frames[3]
    for latency, is_shown in ((0, False), (2, True)):
        results = [result.segmentation for result in segment_video(frames, digits_predictor(), latency=latency)]
        three = identities(clip, results, 3)
        assert (three[3] is not None) == is_shown and len(set(three) - {None}) == 1


def test_smoothing_needs_the_scores_of_all_classes() -> None:
    predictor = small_predictor("MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT", "labels")
    list(segment_video(noise(1), predictor, task="semantic"))
    with pytest.raises(ValueError, match="SEMANTIC_OUTPUT to scores"):
        list(segment_video(noise(1), predictor, task="semantic", smoothing=0.5))
