"""Video files as sequences of RGB arrays, read and written with PyAV (FFmpeg)."""

# H, W pixels.

from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

try:
    import av
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"videos need PyAV (pip install av, or the package's extra 'demo'): {error}") from error

__all__ = ["VIDEO_SUFFIXES", "VideoError", "VideoReader", "VideoWriter"]

#: What `VideoWriter` can write.
VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")

_logger = logging.getLogger(__name__)
# A player can start at such a frame, and what lies before it survives a kill of the process.
_SECONDS_BETWEEN_KEY_FRAMES = 2


class VideoError(ValueError):
    """A video file is not what its reader needs; the message names the file."""


class VideoReader:
    """Iterates once over the frames of a video file, holding one at a time.

    Attributes:
        fps: frames per second on average.
        num_frames: as the file says, None if it does not; only good for a progress bar.
        size: (H, W) of the frames, after turning them upright.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: the file is not a video or has no frame that can be decoded; while iterating: it is cut off or
            damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"video {str(path)!r} does not exist")
        try:
            self._container = av.open(str(self.path))
        except av.error.FFmpegError as error:
            raise VideoError(f"{path} is not a video that can be read, or it is cut off: {error.strerror}") from error
        try:
            self._start()
        except VideoError:
            self.close()
            raise

    def _start(self) -> None:
        if not self._container.streams.video:
            raise VideoError(f"{self.path} holds no video stream")
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        self._frames = self._container.decode(stream)
        self._num_read = 0
        self.num_frames: int | None = None
        # The first frame is decoded right away: a file without any is refused before a network is built.
        self._first = self._next()
        if self._first is None:
            raise VideoError(f"{self.path} has no frames")
        self.size: tuple[int, int] = (self._first.shape[0], self._first.shape[1])
        self.fps: Fraction = stream.average_rate or stream.guessed_rate or Fraction(25)
        self._frames_counted = stream.frames
        self.num_frames = stream.frames or self._frames_from_duration(stream)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yields (H, W, 3) uint8 RGB frames."""
        frame, self._first = self._first, None
        while frame is not None:
            yield frame
            frame = self._next()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def _next(self) -> NDArray[np.uint8] | None:
        try:
            frame = next(self._frames, None)
        except av.error.FFmpegError as error:
            raise VideoError(
                f"{self.path} is cut off or damaged after {self._num_read} frames: {error.strerror}"
            ) from error
        if frame is None:
            self._check_end()
            return None
        self._num_read += 1
        # Phones film in any position and leave turning the picture to the player.
        quarter_turns = round(frame.rotation / 90)
        pixels: NDArray[np.uint8] = np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns)
        return np.ascontiguousarray(pixels)

    def _check_end(self) -> None:
        """A file that was cut off may simply end early: compares with the number of frames that it announced."""
        if not self._num_read or self._num_read >= 0.95 * (self.num_frames or 0) - 1:
            return
        message = f"{self.path} ends after {self._num_read} of {self.num_frames} frames: it may be cut off"
        if self._frames_counted:
            raise VideoError(message)
        _logger.warning(message)  # only an estimate: the sound may be longer than the picture

    def _frames_from_duration(self, stream: av.VideoStream) -> int | None:
        if self._container.duration is None:
            return None
        return round(self._container.duration / av.time_base * self.fps) or None


class VideoWriter:
    """Writes RGB frames to a new video file that browsers play (H.264 where this FFmpeg has an encoder for it).

    What was written stays playable when the program ends early: leaving the `with` block completes the file, also after
    an error or Ctrl-C, and after a kill all but the last seconds can still be read. Without a single frame no file
    is left.

    Args:
        path: a new file; the suffix (one of `VIDEO_SUFFIXES`) chooses the format.
        fps: frames per second.

    Raises:
        FileExistsError: the file exists; it is not touched.
        ValueError: the suffix is not one of `VIDEO_SUFFIXES`; while writing: a frame has another size than the first.
    """

    def __init__(self, path: str | Path, fps: Fraction | float) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in VIDEO_SUFFIXES:
            raise ValueError(f"a video cannot be written to {str(path)!r}; its suffix must be one of {VIDEO_SUFFIXES}")
        if self.path.exists():
            raise FileExistsError(f"{path} exists and is not overwritten; choose another output or remove it")
        self.num_frames = 0
        self._fps = Fraction(fps).limit_denominator(65535)
        self._first_seconds: float | None = None
        self._last_place = -1
        self._size: tuple[int, int] | None = None
        self._container: av.container.OutputContainer | None = None

    def write(self, frame: NDArray[np.uint8], seconds: float | None = None) -> None:
        """Appends a frame.

        Args:
            frame: (H, W, 3) uint8 RGB, of the same size as the first one.
            seconds: when it was taken, on a clock of which only differences count, rounded to frames per second; None:
                right after the frame before it. All frames of a file have times, or none has.
        """
        size = (frame.shape[0], frame.shape[1])
        if self._size is None:
            self._open(size, has_times=seconds is not None)
        if size != self._size:
            raise ValueError(f"frame {self.num_frames} for {self.path} is {size}, but the first one was {self._size}")
        # The color format of H.264 halves both sides: odd ones get a copy of their last row or column.
        even = np.pad(frame, ((0, size[0] % 2), (0, size[1] % 2), (0, 0)), mode="edge")
        assert self._container is not None, "opened with the first frame"
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        if seconds is not None:
            self._first_seconds = seconds if self._first_seconds is None else self._first_seconds
            place = round((seconds - self._first_seconds) * float(self._fps))
            picture.pts = self._last_place = max(place, self._last_place + 1)
            picture.time_base = 1 / self._fps
        self._container.mux(self._stream.encode(picture))
        self.num_frames += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Completes the file; may be called more than once."""
        container, self._container = self._container, None
        if container is not None:
            try:
                container.mux(self._stream.encode(None))
            finally:
                container.close()

    def _open(self, size: tuple[int, int], *, has_times: bool) -> None:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        if codec != "libx264":
            _logger.warning(f"this FFmpeg has no H.264 encoder: {self.path} is MPEG-4, which browsers do not play")
        # Written in fragments that can be played without the file's end, and turned into a plain file when completed.
        fragmented = {} if self.path.suffix.lower() == ".mkv" else {"movflags": "hybrid_fragmented"}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Without flushing, the last quarter of a MiB would be in memory only: of small pictures that is many seconds.
        options = {"flush_packets": "1", **fragmented}
        self._container = av.open(str(self.path), "w", container_options=options)
        stream = self._container.add_stream(codec, rate=self._fps)
        assert isinstance(stream, av.VideoStream), f"{codec} encodes pictures"
        stream.height, stream.width = size[0] + size[0] % 2, size[1] + size[1] % 2
        stream.pix_fmt = "yuv420p"
        stream.gop_size = max(1, round(self._fps * _SECONDS_BETWEEN_KEY_FRAMES))
        if codec == "libx264":
            # Frames predicted from later ones would put off the start by the time between the first frames.
            stream.options = {"crf": "20", "preset": "veryfast", **({"bf": "0"} if has_times else {})}
        else:
            stream.bit_rate = 8 * size[0] * size[1]
        self._stream, self._size = stream, size
