"""Video files: what is written can be read, and a damaged file is said to be damaged."""

from __future__ import annotations

import contextlib
import logging
from fractions import Fraction

import av
import numpy as np
import pytest

from mask2former.deploy.video_io import VIDEO_SUFFIXES, VideoError, VideoReader, VideoWriter


def gray_frames(num_frames, size=(48, 64)):
    return [np.full((*size, 3), 8 * index % 256, dtype=np.uint8) for index in range(num_frames)]


def noisy_frames(num_frames, size=(96, 128)):
    """Frames that fill a file: what is cut off must be frames, not only the index."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(num_frames)]


def write(path, frames, fps=10):
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def test_frames_are_seen_when_they_were_taken(tmp_path):
    path = tmp_path / "video.mp4"
    with VideoWriter(path, 10) as writer:
        for frame, seconds in zip(gray_frames(4), [7.0, 7.01, 8.5, 9.0], strict=True):
            writer.write(frame, seconds)
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([0, 0.1, 1.5, 2.0])


def with_index_first(path, target):
    """Copies a video so that its index comes before the frames, as files made for streaming have it."""
    with av.open(str(path)) as source, av.open(str(target), "w", container_options={"movflags": "faststart"}) as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    return target


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_what_is_written_can_be_read(tmp_path, suffix):
    path = write(tmp_path / f"video{suffix}", gray_frames(20), fps=Fraction(30000, 1001))
    with VideoReader(path) as reader:
        assert reader.size == (48, 64)
        assert float(reader.fps) == pytest.approx(29.97, abs=0.01)
        frames = list(reader)
    assert len(frames) == 20
    for index, frame in enumerate(frames):
        assert frame.dtype == np.uint8 and frame.shape == (48, 64, 3)
        assert abs(frame.astype(int) - 8 * index).max() <= 6


def test_the_number_of_frames_is_known_before_reading(tmp_path):
    with VideoReader(write(tmp_path / "video.mp4", gray_frames(12))) as reader:
        assert reader.num_frames == 12


def test_odd_sides_are_filled_up(tmp_path):
    with VideoReader(write(tmp_path / "video.mp4", gray_frames(2, (47, 63)))) as reader:
        assert reader.size == (48, 64)


def test_videos_are_h264_where_there_is_an_encoder(tmp_path):
    path = write(tmp_path / "video.mp4", gray_frames(2))
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == (
            "h264" if "libx264" in av.codecs_available else "mpeg4"
        )


def test_an_existing_video_is_not_overwritten(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"video\.mp4"):
        VideoWriter(path, 10)
    assert path.read_bytes() == b"precious"


def test_an_error_while_writing_leaves_a_complete_file(tmp_path):
    path = tmp_path / "video.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 10) as writer:
        for frame in gray_frames(7):
            writer.write(frame)
        raise KeyboardInterrupt
    with VideoReader(path) as reader:
        assert len(list(reader)) == 7


@pytest.mark.parametrize("frames", [noisy_frames, gray_frames], ids=["large", "small"])
def test_a_killed_writer_leaves_all_but_the_last_seconds(tmp_path, frames):
    path = tmp_path / "video.mp4"
    writer = VideoWriter(path, 10)
    for frame in frames(100):
        writer.write(frame)
    killed = tmp_path / "killed.mp4"
    killed.write_bytes(path.read_bytes())
    writer.close()
    num_frames = 0
    # Whether the reader notices depends on where the last fragment was cut.
    with VideoReader(killed) as reader, contextlib.suppress(VideoError):
        for _ in reader:
            num_frames += 1
    assert num_frames >= 20


def test_no_frame_leaves_no_file(tmp_path):
    write(tmp_path / "video.mp4", [])
    assert list(tmp_path.iterdir()) == []


def test_a_frame_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\(32, 64\)"), VideoWriter(tmp_path / "video.mp4", 10) as writer:
        writer.write(gray_frames(1)[0])
        writer.write(gray_frames(1, (32, 64))[0])


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.mp4"):
        VideoWriter(tmp_path / "video.txt", 10)


def test_a_missing_video_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.mp4"):
        VideoReader(tmp_path / "nothing.mp4")


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_a_file_that_is_no_video_is_named(tmp_path, content):
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"video\.mp4"):
        VideoReader(path)


def test_a_video_without_frames_is_refused(tmp_path):
    path = tmp_path / "video.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(VideoError, match=r"video\.avi"):
        VideoReader(path)


def test_a_video_cut_off_before_its_index_is_refused(tmp_path):
    path = cut(write(tmp_path / "video.mp4", noisy_frames(30)), 0.5)
    with pytest.raises(VideoError, match="cut off"):
        VideoReader(path)


def test_a_video_cut_off_after_its_index_gives_its_frames_and_then_an_error(tmp_path):
    path = cut(with_index_first(write(tmp_path / "a.mp4", noisy_frames(60)), tmp_path / "video.mp4"), 0.5)
    frames = []
    with VideoReader(path) as reader, pytest.raises(VideoError):
        for frame in reader:
            frames.append(frame)
    assert 5 < len(frames) < 60


def test_a_cut_off_video_of_unsure_length_is_warned_of(tmp_path, caplog):
    path = cut(write(tmp_path / "video.mkv", noisy_frames(60)), 0.5)
    with VideoReader(path) as reader, caplog.at_level(logging.WARNING):
        num_frames = len(list(reader))
    assert 5 < num_frames < 60
    assert "video.mkv" in caplog.text and "cut off" in caplog.text


def test_frames_of_a_video_whose_size_changes_come_in_their_sizes(tmp_path):
    path = tmp_path / "video.ts"
    for size in ((48, 64), (96, 128)):
        with av.open(str(tmp_path / "part.ts"), "w", format="mpegts") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            for frame in gray_frames(5, size):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        with open(path, "ab") as whole:
            whole.write((tmp_path / "part.ts").read_bytes())
    with VideoReader(path) as reader:
        sizes = [frame.shape[:2] for frame in reader]
    assert set(sizes) == {(48, 64), (96, 128)} and sizes[0] == (48, 64)
