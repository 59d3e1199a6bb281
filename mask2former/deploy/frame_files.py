"""The frames of a video written as numbered pictures."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from mask2former.deploy.pictures import write_picture

__all__ = ["FRAME_SUFFIXES", "FrameFilesWriter"]

#: What `FrameFilesWriter` can write.
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg")

_NUMBER = re.compile(r"%(0\d+)?d")


class FrameFilesWriter:
    """Writes RGB frames as pictures whose names count from 0, each of them whole or not at all.

    Args:
        pattern: the files' path, with %d, or %05d for five digits, in the place of the number: "frames/%05d.png".

    Raises:
        ValueError: the file name has not exactly one such place, or another suffix than .png, .jpg or .jpeg.
        FileExistsError: there are files of such names already.
    """

    def __init__(self, pattern: str | Path) -> None:
        self.path = Path(pattern)
        parts = _NUMBER.split(self.path.name)
        if len(parts) != 3 or self.path.suffix.lower() not in FRAME_SUFFIXES:
            raise ValueError(f"frames cannot be written to {str(pattern)!r}; name them like frames/%05d.png")
        names = re.compile(rf"{re.escape(parts[0])}\d+{re.escape(parts[2])}")
        folder = self.path.parent
        existing = [path for path in folder.iterdir() if names.fullmatch(path.name)] if folder.is_dir() else []
        if existing:
            raise FileExistsError(
                f"{min(existing)} exists and frames are not mixed with others; choose another folder or empty it"
            )
        self.num_frames = 0

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Writes the next frame, (H, W, 3) uint8 RGB."""
        name = _NUMBER.sub(lambda match: f"{self.num_frames:{match[1] or ''}d}", self.path.name)
        write_picture(self.path.with_name(name), frame)
        self.num_frames += 1

    def __enter__(self) -> FrameFilesWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass
