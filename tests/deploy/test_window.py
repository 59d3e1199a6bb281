"""Windows and cameras that are not there: said before OpenCV ends the process."""

from __future__ import annotations

import sys

import cv2
import pytest

from mask2former.deploy.window import camera_frames, check_window_support


def test_an_opencv_without_windows_is_recognized(monkeypatch):
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:                           NONE\n")
    with pytest.raises(RuntimeError, match="opencv-python-headless"):
        check_window_support()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have a screen")
def test_a_missing_screen_is_recognized(monkeypatch):
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:                           QT5\n")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(RuntimeError, match="DISPLAY"):
        check_window_support()
    monkeypatch.setenv("DISPLAY", ":0")
    check_window_support()


def test_a_camera_that_is_not_there_is_said_at_once():
    with pytest.raises(RuntimeError, match="camera 97"):
        camera_frames(97)
