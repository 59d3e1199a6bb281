"""A digit-disc data set that a test may damage."""

from __future__ import annotations

import pytest

from tests.fixtures import make_digits


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """Folder of the data set: 4 + 1 scenes of 48 x 48 pixels."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return make_digits(tmp_path, num_train=4, num_val=1, size=48) / "digits"
