"""The script that watches the memory of long videos: its pictures, its table and its chart."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from benchmarks import video_memory
from mask2former.benchmark.memory import own_memory


def test_the_video_has_the_size_asked_for_and_moves() -> None:
    frames = list(video_memory.moving_discs(27, (50, 90)))
    assert len(frames) == 27 and {frame.shape for frame in frames} == {(50, 90, 3)}
    assert all((first != second).any() for first, second in zip(frames, frames[1:], strict=False))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_is_noted_after_every_frame_and_drawn(tmp_path) -> None:
    way = "panoptic, smoothing 0.5, latency 5"
    course = video_memory.segment(way, 7, (48, 80), torch.get_num_threads())
    assert len(course.mebibytes) == 7 and min(course.mebibytes) > 1 and course.num_identities >= 1
    video_memory.save_chart({way: course}, str(tmp_path / "chart.png"), "7 frames")
    assert (tmp_path / "chart.png").stat().st_size > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_that_is_written_counts() -> None:
    before = own_memory()
    kept = np.ones(2**25, dtype=np.uint8)
    assert own_memory() - before > 0.9 * kept.nbytes
