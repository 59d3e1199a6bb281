"""What tests of preparations share: writing tiny pictures, reading results, and interruptions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mask2former.data.preparation.jobs import FileJob
from mask2former.files import write_atomically

NUM_FILES = 40  # of the fixture `jobs`


def write_picture(path: Path, pixels: object, dtype: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=dtype)).save(path)


def read_picture(path: Path) -> list:
    with Image.open(path) as picture:
        return np.asarray(picture).tolist()


def write_times(folder: Path) -> dict[str, int]:
    """When each file below the folder was written, with its name below the folder."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def copy(job: FileJob) -> str:
    """Makes the target of a job."""
    content = job.source.read_bytes()
    write_atomically(job.target, lambda file: file.write(content), sync=False)
    return content.decode()


def copy_unless_broken(job: FileJob) -> str:
    """Dies in the middle of the file whose source says "broken"."""

    def write(file):
        file.write(b"half of ")
        if job.source.read_text() == "broken":
            raise ValueError("this cannot be copied")

    write_atomically(job.target, write, sync=False)
    return copy(job)
