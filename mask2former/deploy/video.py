"""Videos of any length, frame by frame and in constant memory, with identities that stay."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mask2former.deploy.clip_tracking import ClipTracker
from mask2former.deploy.delay import delayed
from mask2former.deploy.frame_tracking import FrameTracker
from mask2former.deploy.predictor import Predictor
from mask2former.deploy.results import ClassInfo, Segmentation, Task, class_infos
from mask2former.deploy.semantic_smoothing import semantic_results
from mask2former.maskformer_model import MaskFormer

__all__ = ["FrameResult", "segment_video", "video_tasks"]

#: Frames of a clip of a video model, and how many of them the next clip shares, where the caller does not say.
WINDOW, OVERLAP = 16, 4

Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class FrameResult:
    """A frame and what is seen in it."""

    index: int  # of the frame in the video, from 0
    frame: Frame  # (H, W, 3) uint8 RGB, as it was given
    segmentation: Segmentation  # each segment of panoptic and instance results has its `track_id`


def segment_video(
    frames: Iterable[Frame],
    predictor: Predictor,
    *,
    task: Task | None = None,
    window: int | None = None,
    overlap: int | None = None,
    smoothing: float = 0.0,
    latency: int = 0,
    threshold: float | None = None,
) -> Iterator[FrameResult]:
    """Segments the frames of a video or a camera as they come; an object keeps its `track_id` from frame to frame.

    A model for images takes every frame by itself, see `FrameTracker`; one for videos takes clips, see `ClipTracker`.
    Each frame has one result; they come in order, as soon as they are final. Memory does not grow with the number of
    frames.

    Args:
        frames: (H, W, 3) uint8 RGB, read one at a time when the next result is asked for. Their size may change.
        predictor: of a model for images or videos.
        task: one of `video_tasks(predictor)`; None is the first of them.
        window: of a model for videos: frames of a clip, at least 1 (default 16).
        overlap: of a model for videos: how many of them the next clip shares, from 0 to `window` - 1 (default 4, in
            short clips a quarter). Results lag by up to a clip.
        smoothing: of a model for images: share of the past in what the network says of an object or, in semantic
            results, of a pixel's classes; at least 0 and below 1. It steadies edges and scores, and blurs what moves
            fast.
        latency: of a model for images: results come so many frames late. Meanwhile gaps are filled and flickers left
            out, see `delayed`; smoothed semantic results count the later frames, see `smoothed_scores`.
        threshold: score that a segment needs. None: what the config says for panoptic results, 0.5 for instances, and
            every instance of a clip.

    Raises:
        ValueError: an argument is out of range, or has no effect with this model and task; while frames are read: one
            is no (H, W, 3) uint8 array with any pixels.
    """
    tasks = video_tasks(predictor)
    task = tasks[0] if task is None else task
    if task not in tasks:
        raise ValueError(f"task {task!r} is not among those that the model is configured for: {', '.join(tasks)}")
    takes_clips = _takes_clips(predictor)
    if takes_clips and (smoothing or latency):
        raise ValueError("smoothing and latency are for models of images; this one takes clips: window and overlap")
    if not takes_clips and (window is not None or overlap is not None):
        raise ValueError("window and overlap are for models of videos; this one takes frames: smoothing and latency")
    if task == "semantic" and threshold is not None:
        raise ValueError("threshold is for segments with a score; semantic results have none")
    if task == "semantic" and latency and not smoothing:
        raise ValueError("latency changes semantic results only together with smoothing")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be at least 0 and below 1, got {smoothing}")
    if latency < 0:
        raise ValueError(f"latency must be a number of frames, got {latency}")
    window = WINDOW if window is None else window
    overlap = min(OVERLAP, window // 4) if overlap is None else overlap
    if not 0 <= overlap < window:
        raise ValueError(f"clips of window={window} frames cannot share overlap={overlap} of them with the next one")

    classes = _classes(predictor, task)
    waiting: deque[Frame] = deque()

    def read() -> Iterator[Frame]:
        for index, frame in enumerate(frames):
            _check_frame(frame, index)
            waiting.append(frame)
            yield frame

    if takes_clips:
        results = ClipTracker(predictor, classes, window=window, overlap=overlap, threshold=threshold)(read())
    elif task == "semantic":
        results = semantic_results(read(), predictor, classes, smoothing=smoothing, latency=latency)
    else:
        tracker = FrameTracker(predictor, classes, task, smoothing=smoothing, threshold=threshold)
        results = map(tracker, read())
        if latency:
            results = delayed(results, latency)
    return (FrameResult(index, waiting.popleft(), segmentation) for index, segmentation in enumerate(results))


def video_tasks(predictor: Predictor) -> tuple[Task, ...]:
    """What `segment_video` can give, of "panoptic", "instance" and "semantic": what the model is configured for."""
    model = predictor.model
    if _takes_clips(predictor):
        return ("instance",)
    if not isinstance(model, MaskFormer):
        return ("semantic",)
    switches: dict[Task, bool] = {
        "panoptic": model.panoptic_on,
        "instance": model.instance_on,
        "semantic": model.semantic_on,
    }
    return tuple(task for task, is_on in switches.items() if is_on)


def _takes_clips(predictor: Predictor) -> bool:
    return isinstance(predictor.model, MaskFormer) and predictor.model.is_video


def _check_frame(frame: Frame, index: int) -> None:
    is_picture = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
    if not is_picture or frame.size == 0:
        got = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"frame {index} must be an (H, W, 3) uint8 RGB array with any pixels, got {got}")


def _classes(predictor: Predictor, task: str) -> tuple[ClassInfo, ...]:
    metadata, model = predictor.metadata, predictor.model
    num_classes = model.criterion.num_classes if isinstance(model, MaskFormer) else len(metadata.stuff_classes)
    classes = class_infos(metadata, num_classes)
    if task == "instance" and not any(info.is_thing for info in classes):
        return tuple(replace(info, is_thing=True) for info in classes)  # metadata that say nothing about it
    return classes
