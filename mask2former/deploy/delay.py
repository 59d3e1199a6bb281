"""Results that lag behind a video by a few frames, and are better for it: gaps are filled, flickers left out."""
# L frames of lag, (H, W) pixels.

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mask2former.data.masks import encode_rle
from mask2former.deploy.results import Segment, Segmentation
from mask2former.deploy.segment_editing import add_hidden_segments, keep_segments, moved_mask

__all__ = ["delayed", "frames_to_be_seen"]


def frames_to_be_seen(latency: int) -> int:
    """In so many frames a thing must be seen to be shown: more than half of one frame and `latency` more."""
    return (latency + 1) // 2 + 1


class _Frame(NamedTuple):
    number: int
    segmentation: Segmentation
    things: dict[int, Segment]  # by identity


@dataclass
class _History:
    """What is remembered of a thing."""

    first: int  # number of the frame in which it was seen first
    last: int
    num_seen: int = 0
    shown: tuple[int, Segment] | None = None  # the last frame that has left with it, and its segment there


def delayed(segmentations: Iterable[Segmentation], latency: int) -> Iterator[Segmentation]:
    """Each result once `latency` more were read, or the last one was, changed by what these tell.

    - A thing that was seen in fewer than `frames_to_be_seen` frames until then is left out. One that appears so shortly
      before the end that there are not as many is shown if it is seen in all of them.
    - A thing that is missing in at most `latency` frames between two that show it is put there: with its mask in the
      nearer one, moved along the straight line between its centers, and behind all other things. Where the size of the
      frames changes, nothing is put.

    Args:
        segmentations: panoptic or instance results of one video, in which every thing has its `track_id`.
        latency: L, at least 1.
    """
    histories: dict[int, _History] = {}
    waiting: deque[_Frame] = deque()
    num_read = 0
    for segmentation in segmentations:
        things = {segment.track_id: segment for segment in segmentation.segments if segment.is_thing}
        assert None not in things, "tracking gives every thing an identity"
        frame = _Frame(num_read, segmentation, things)  # type: ignore[arg-type]  # None is not among the keys
        for identity in frame.things:
            history = histories.setdefault(identity, _History(first=num_read, last=num_read))
            history.last, history.num_seen = num_read, history.num_seen + 1
        waiting.append(frame)
        num_read += 1
        if len(waiting) > latency:
            yield _completed(waiting, histories, latency, num_read)
            # A gap that began before this can no longer be filled.
            oldest = waiting[0].number - latency - 1
            histories = {identity: history for identity, history in histories.items() if history.last >= oldest}
    while waiting:
        yield _completed(waiting, histories, latency, num_read)


def _completed(waiting: deque[_Frame], histories: dict[int, _History], latency: int, num_read: int) -> Segmentation:
    """Takes the oldest frame, of `num_read` that were read, from those that wait."""
    frame = waiting.popleft()

    def is_believed(identity: int) -> bool:
        history = histories[identity]
        return history.num_seen >= min(frames_to_be_seen(latency), num_read - history.first)

    shown = {
        index: segment.track_id
        for index, segment in enumerate(frame.segmentation.segments)
        if not segment.is_thing or (segment.track_id is not None and is_believed(segment.track_id))
    }
    missing = []
    for identity, history in histories.items():
        if identity in frame.things:
            if is_believed(identity):
                history.shown = (frame.number, frame.things[identity])
        elif history.shown is not None:
            later = next((other for other in waiting if identity in other.things), None)
            if later is not None and later.number - history.shown[0] - 1 <= latency:
                ends = history.shown, (later.number, later.things[identity])
                size = [frame.segmentation.height, frame.segmentation.width]
                if all(list(segment.mask["size"]) == size for _, segment in ends):
                    missing.append(_between(*ends, frame.number))
    return add_hidden_segments(keep_segments(frame.segmentation, shown), missing)


def _between(before: tuple[int, Segment], after: tuple[int, Segment], frame: int) -> Segment:
    """A thing in a frame between two that show it."""
    share = (frame - before[0]) / (after[0] - before[0])
    masks_HW = before[1].bitmap(), after[1].bitmap()
    centers = [_center(mask_HW) for mask_HW in masks_HW]
    center = centers[0] + share * (centers[1] - centers[0])
    nearer = 0 if share <= 0.5 else 1
    rows, columns = np.rint(center - centers[nearer]).astype(int).tolist()
    segment = (before, after)[nearer][1].with_mask(encode_rle(moved_mask(masks_HW[nearer], rows, columns)))
    if before[1].score is None or after[1].score is None:
        return segment
    return replace(segment, score=before[1].score + share * (after[1].score - before[1].score))


def _center(mask_HW: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(row, column)."""
    return np.argwhere(mask_HW).mean(axis=0)
