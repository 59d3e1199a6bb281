"""Frames as numbered pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mask2former.deploy.frame_files import FrameFilesWriter


def test_frames_are_numbered_from_zero_and_unchanged(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)
    with FrameFilesWriter(tmp_path / "new" / "frame_%03d.png") as writer:
        for frame in frames:
            writer.write(frame)
    assert writer.num_frames == 3
    for index, frame in enumerate(frames):
        assert (np.asarray(Image.open(tmp_path / "new" / f"frame_{index:03d}.png")) == frame).all()


def test_numbers_may_have_no_leading_zeros(tmp_path):
    with FrameFilesWriter(tmp_path / "%d.jpg") as writer:
        for _ in range(11):
            writer.write(np.zeros((8, 12, 3), dtype=np.uint8))
    assert (tmp_path / "10.jpg").is_file() and (tmp_path / "0.jpg").is_file()


@pytest.mark.parametrize("name", ["frames.png", "%05d%d.png", "%05d.gif", "%s.png", "%05d"])
def test_other_patterns_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"frames/%05d\.png"):
        FrameFilesWriter(tmp_path / name)


def test_frames_of_an_earlier_run_are_not_overwritten(tmp_path):
    (tmp_path / "0007.png").write_text("precious")
    (tmp_path / "7.jpg").write_text("another format")
    with pytest.raises(FileExistsError, match=r"0007\.png"):
        FrameFilesWriter(tmp_path / "%05d.png")
    FrameFilesWriter(tmp_path / "a%05d.png")
