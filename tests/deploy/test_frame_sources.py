"""Folders of frames: their order, what is missing or broken, and frames of several sizes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image

from mask2former.deploy.frame_sources import FrameFolder, of_one_size
from mask2former.deploy.video_io import VideoError


def fill(folder, names, size=(8, 12)):
    """Pictures whose gray value is their place in `names`."""
    folder.mkdir(exist_ok=True)
    for value, name in enumerate(names):
        Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).save(folder / name)
    return folder


def test_frames_come_in_the_order_that_people_count_in(tmp_path):
    folder = fill(tmp_path / "frames", ["f1.png", "f10.png", "f2.png", "f9.png"])
    (folder / "notes.txt").write_text("no frame")
    (folder / "._f1.png").write_text("left behind by a Mac")
    with FrameFolder(folder) as frames:
        assert frames.num_frames == 4
        assert [int(frame[0, 0, 0]) for frame in frames] == [0, 2, 3, 1]


@pytest.mark.parametrize(
    ("numbers", "gap"),
    [
        ([1, 2, 3, 4, 5], None),
        ([0, 5, 10, 15], None),
        ([1, 2, 4, 5, 6], "2..4"),
        ([0, 5, 10, 20, 25], "10..20"),
    ],
)
def test_missing_numbers_are_warned_of_and_the_other_frames_given(tmp_path, caplog, numbers, gap):
    folder = fill(tmp_path / "frames", [f"{number:05d}.png" for number in numbers])
    with caplog.at_level(logging.WARNING):
        assert len(list(FrameFolder(folder))) == len(numbers)
    assert (gap is None and not caplog.text) or (gap is not None and gap in caplog.text)


def test_names_without_numbers_are_no_gaps(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(list(FrameFolder(fill(tmp_path / "frames", ["first.png", "second.png", "9.png"])))) == 3
    assert not caplog.text


def test_a_broken_frame_is_named_behind_the_frames_before_it(tmp_path):
    folder = fill(tmp_path / "frames", ["0.png", "1.png", "2.png"])
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    frames = iter(FrameFolder(folder))
    next(frames)
    with pytest.raises(VideoError, match=r"after 1 of 3 frames.*1\.png"):
        next(frames)


def test_a_folder_without_pictures_is_named(tmp_path):
    (tmp_path / "frames").mkdir()
    with pytest.raises(VideoError, match="frames has no picture"):
        FrameFolder(tmp_path / "frames")


def test_frames_of_other_sizes_get_that_of_the_first_and_are_warned_of_once(caplog):
    frames = [np.full((*size, 3), 7, dtype=np.uint8) for size in ((8, 12), (8, 12), (16, 24), (4, 6), (8, 12))]
    with caplog.at_level(logging.WARNING):
        result = list(of_one_size(frames, "film.mp4"))
    assert all(frame.shape == (8, 12, 3) and (frame == 7).all() for frame in result) and len(result) == 5
    assert len(caplog.records) == 1 and "film.mp4: frame 2 is 24x16" in caplog.text


def test_frames_of_one_size_pass_unchanged():
    frames = [np.zeros((8, 12, 3), dtype=np.uint8)] * 2
    assert all(frame is given for frame, given in zip(of_one_size(frames, "film"), frames, strict=True))
