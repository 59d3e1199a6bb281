"""Jobs that copy tiny files."""

import pytest

from mask2former.data.preparation.jobs import FileJob
from tests.data.preparation.trees import NUM_FILES


@pytest.fixture
def jobs(tmp_path) -> list[FileJob]:
    (tmp_path / "in").mkdir()
    sources = [tmp_path / "in" / f"{number:02}.txt" for number in range(NUM_FILES)]
    for source in sources:
        source.write_text(source.stem)
    return [FileJob(source, tmp_path / "out" / source.name) for source in sources]
