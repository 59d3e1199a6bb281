"""Tiny data the tests make for themselves."""

from __future__ import annotations

from pathlib import Path

from mask2former.data.datasets.digit_clips_writer import DigitClipsSettings, prepare_digit_clips
from mask2former.data.datasets.digits_writer import DigitsSettings, prepare_digits


def make_digits(root: Path, *, num_train: int = 8, num_val: int = 4, size: int = 96, seed: int = 0) -> Path:
    """Writes a small digit-disc data set to root/digits and returns root, the value DETECTRON2_DATASETS must have."""
    settings = DigitsSettings(num_train=num_train, num_val=num_val, size=size, seed=seed)
    prepare_digits(root / "digits", settings)
    return root


def make_digits_video(root: Path, *, num_train: int = 4, num_val: int = 2, num_frames: int = 8) -> Path:
    """Writes a few digit-disc clips to root/digits_video and returns root."""
    settings = DigitClipsSettings(num_train=num_train, num_val=num_val, num_frames=num_frames)
    prepare_digit_clips(root / "digits_video", settings)
    return root
