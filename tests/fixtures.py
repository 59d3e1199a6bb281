"""Tiny data the tests make for themselves."""

from __future__ import annotations

from pathlib import Path

from mask2former.data.datasets.digits_writer import DigitsSettings, prepare_digits


def make_digits(root: Path, *, num_train: int = 8, num_val: int = 4, size: int = 96, seed: int = 0) -> Path:
    """Writes a small digit-disc data set to root/digits and returns root, the value DETECTRON2_DATASETS must have."""
    settings = DigitsSettings(num_train=num_train, num_val=num_val, size=size, seed=seed)
    prepare_digits(root / "digits", settings)
    return root
