"""A video in stages: nothing before a break is lost, also when results lag behind the frames."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from mask2former.deploy.video import FrameResult
from mask2former.deploy.video_io import VideoError
from mask2former.deploy.video_stages import run_stages


def frames(count, *, breaks=False):
    for index in range(count):
        yield np.full((4, 6, 3), index, dtype=np.uint8)
    if breaks:
        raise VideoError("film.mp4 is cut off")


def lagging_results(images):
    """Gives a result only when two more frames were read, or the last one was."""
    waiting = deque()
    for index, image in enumerate(images):
        waiting.append(FrameResult(index, image, None))
        if len(waiting) > 2:
            yield waiting.popleft()
    yield from waiting


def test_results_come_in_order_with_their_frames():
    done = []
    run_stages(frames(20), lagging_results, done.append, num_frames=20)
    assert [result.index for result in done] == list(range(20))
    assert all((result.frame == result.index).all() for result in done)


def test_all_frames_before_a_break_are_done_and_then_it_is_raised():
    done = []
    with pytest.raises(VideoError, match="cut off"):
        run_stages(frames(7, breaks=True), lagging_results, done.append)
    assert [result.index for result in done] == list(range(7))


def test_an_error_of_the_writer_is_raised():
    def fail(result):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        run_stages(frames(20), lagging_results, fail)


def test_an_error_of_the_network_is_raised_when_the_results_before_it_are_done():
    def results(images):
        for result in lagging_results(images):
            if result.index == 3:
                raise RuntimeError("out of memory")
            yield result

    done = []
    with pytest.raises(RuntimeError, match="out of memory"):
        run_stages(frames(20), results, done.append)
    assert [result.index for result in done] == [0, 1, 2]
