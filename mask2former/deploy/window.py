"""What OpenCV is used for: a window on the screen and the frames of a camera."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Window", "camera_frames"]

_ESCAPE = 27


class Window:
    """A window that shows RGB pictures until the user presses Escape or closes it.

    Raises:
        RuntimeError: there is no screen, or the installed OpenCV cannot open windows; the message has the cure.
    """

    def __init__(self, title: str) -> None:
        check_window_support()
        self._title = title
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)

    def show(self, picture: NDArray[np.uint8], *, wait: bool) -> bool:
        """Shows a picture, (H, W, 3) uint8 RGB; with `wait` until a key is pressed.

        Returns:
            False if the user wants to stop.
        """
        cv2.imshow(self._title, picture[:, :, ::-1])
        key = cv2.waitKey(0 if wait else 1)
        is_open = cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1
        return is_open and key != _ESCAPE

    def __enter__(self) -> Window:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        cv2.destroyWindow(self._title)


def check_window_support() -> None:
    """Raises RuntimeError where a window cannot be opened: OpenCV itself would end the whole process."""
    toolkit = re.search(r"GUI:\s*(\S+)", cv2.getBuildInformation())
    if toolkit is not None and toolkit[1] == "NONE":
        raise RuntimeError(
            "the installed OpenCV is a build without windows (opencv-python-headless): give --output, or replace it by "
            "opencv-python"
        )
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise RuntimeError("there is no screen (DISPLAY is not set): give --output")


def camera_frames(device: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Opens a camera and yields its frames, (H, W, 3) uint8 RGB, until it stops.

    Raises:
        RuntimeError: the camera cannot be opened; said at once, not with the first frame.
    """
    camera = cv2.VideoCapture(device)
    if not camera.isOpened():
        raise RuntimeError(f"camera {device} cannot be opened: is it plugged in and used by no other program?")
    return _frames(camera)


def _frames(camera: cv2.VideoCapture) -> Iterator[NDArray[np.uint8]]:
    try:
        while True:
            is_read, frame = camera.read()
            if not is_read:
                return
            yield np.ascontiguousarray(frame[:, :, ::-1])
    finally:
        camera.release()
