"""Where the frames of a video come from: a file, or a folder of pictures."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from mask2former.data.reading import BrokenSampleError, read_image
from mask2former.deploy.pictures import PICTURE_SUFFIXES
from mask2former.deploy.video_io import VideoError

__all__ = ["FrameFolder", "of_one_size"]

_logger = logging.getLogger(__name__)
_LAST_NUMBER = re.compile(r"(\d+)\D*$")
_NAMED_GAPS = 5  # in a warning


class FrameFolder:
    """Iterates over the pictures of a folder as the frames of a video, holding one at a time.

    They are sorted by name as people count: frame2 comes before frame10. Where all names are numbered, missing numbers
    are warned of; the frames before and after follow each other.

    Attributes:
        num_frames: pictures in the folder.

    Raises:
        VideoError: the folder has no picture; while iterating: one cannot be read; the message names it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        files = (file for file in self.path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
        # Hidden files are what other programs left behind (._frame1.jpg).
        self._files = sorted((file for file in files if not file.name.startswith(".")), key=_natural_order)
        if not self._files:
            raise VideoError(f"{path} has no picture that could be a frame ({', '.join(PICTURE_SUFFIXES)})")
        self.num_frames = len(self._files)
        self._warn_of_gaps()

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """(H, W, 3) uint8 RGB frames."""
        for num_before, file in enumerate(self._files):
            try:
                yield read_image(str(file), "RGB")
            except BrokenSampleError as error:
                raise VideoError(f"after {num_before} of {self.num_frames} frames: {error}") from error

    def __enter__(self) -> FrameFolder:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def _warn_of_gaps(self) -> None:
        found = [_LAST_NUMBER.search(file.stem) for file in self._files]
        numbers = [int(match[1]) for match in found if match is not None]
        steps = np.diff(numbers)
        if len(numbers) < len(self._files) or not len(steps) or steps.min() < 1:
            return  # not numbered
        # Some datasets keep every fifth frame.
        usual = int(np.median(steps))
        gaps = [f"{numbers[index]}..{numbers[index + 1]}" for index in np.flatnonzero(steps > usual)]
        if gaps:
            named = ", ".join(gaps[:_NAMED_GAPS]) + (", ..." if len(gaps) > _NAMED_GAPS else "")
            _logger.warning(f"{self.path}: frames are missing between {named}; the others follow each other")


def of_one_size(frames: Iterable[NDArray[np.uint8]], name: str) -> Iterator[NDArray[np.uint8]]:
    """Resizes every frame to the size of the first one, which a video file and its tracks have once and for all.

    Args:
        frames: (H, W, 3) uint8 RGB.
        name: of the video, for the warning that is given once.
    """
    size: tuple[int, int] | None = None
    is_warned_of = False
    for index, frame in enumerate(frames):
        size = size or (frame.shape[0], frame.shape[1])
        if frame.shape[:2] != size:
            if not is_warned_of:
                _logger.warning(
                    f"{name}: frame {index} is {frame.shape[1]}x{frame.shape[0]}, the first one {size[1]}x{size[0]}: "
                    "frames of other sizes are resized to that of the first"
                )
            is_warned_of = True
            shrinks = frame.shape[0] > size[0]
            resized = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
            frame = resized.astype(np.uint8, copy=False)
        yield frame


def _natural_order(file: Path) -> list[tuple[int, str]]:
    """Digits are compared as numbers, all else as text."""
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
