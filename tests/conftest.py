"""Fixtures every test module may use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import make_digits, make_digits_video


@pytest.fixture(autouse=True)
def forget_closed_streams() -> None:
    """Programs that earlier tests called left handlers behind, whose streams pytest has closed since.

    Each message would add a traceback of the logging module to what the program of this test writes to stderr.
    """
    for name in ("", "mask2former", "detectron2", "fvcore"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "closed", False):
                logger.removeHandler(handler)


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Root of a digit-disc data set with 8 + 4 scenes; DETECTRON2_DATASETS points at it, also for child processes."""
    root = make_digits(tmp_path_factory.mktemp("datasets"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        yield root


@pytest.fixture(scope="session")
def digits_video_root(digits_root: Path) -> Path:
    """The root of `digits_root`, with 4 + 2 digit-disc clips of 8 frames beside the scenes."""
    return make_digits_video(digits_root)
