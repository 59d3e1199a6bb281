"""A video from its frames to whatever is made of the results, in stages that work at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mask2former.deploy.pipeline import in_background, read_ahead
from mask2former.deploy.video import FrameResult
from mask2former.deploy.video_io import VideoError

__all__ = ["run_stages"]

Frame = NDArray[np.uint8]


def run_stages(
    frames: Iterable[Frame],
    segment: Callable[[Iterable[Frame]], Iterator[FrameResult]],
    consume: Callable[[FrameResult], object],
    *,
    num_frames: int | None = None,
) -> None:
    """Reads frames ahead in one thread, segments in this one and consumes the results in a third; shows the progress.

    Ctrl-C ends it once all results so far are consumed.

    Args:
        frames: what `segment` takes.
        segment: gives the results of frames, such as `segment_video` of a model.
        consume: draws and writes a result.
        num_frames: how many there are, for the progress bar.

    Raises:
        VideoError: that of the frames, once all results before it are consumed.
    """
    breaks: list[VideoError] = []
    with read_ahead(frames) as ahead, in_background(consume) as hand_over:
        for result in tqdm(segment(_until_break(ahead, breaks)), total=num_frames, unit=" frames", disable=None):
            hand_over(result)
    if breaks:
        raise breaks[0]


def _until_break(frames: Iterable[Frame], breaks: list[VideoError]) -> Iterator[Frame]:
    """A damaged video ends before the damage: results that lag behind the frames are not lost."""
    try:
        yield from frames
    except VideoError as error:
        breaks.append(error)
