"""Fixtures every test module may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import make_digits, make_digits_video


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
