"""What preparations share beside their jobs: checked inputs, and pictures that are whole or not there at all."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mask2former.files import write_atomically


def require_inputs(paths: Iterable[Path], *, tree: str, origin: str) -> None:
    """Raises FileNotFoundError with the first path that is missing, the tree that is expected and where it is from."""
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        raise FileNotFoundError(
            f"{missing} does not exist. It comes with {origin}. Expected below the root of all data sets (--root, or "
            f"the environment variable DETECTRON2_DATASETS):\n{tree}"
        )


def list_files(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder with a suffix, sorted by name; hidden ones are left out."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(suffix) and entry.name[0] != ".")
    if not names:
        raise FileNotFoundError(f"{folder} holds no *{suffix}: unpack the data set again")
    return [folder / name for name in names]


def save_picture(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16], **options: Any) -> None:
    """Writes (H, W) or (H, W, 3) pixels in the format that the suffix names; a killed program leaves no half file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format=Image.registered_extensions()[path.suffix], **options)
    write_atomically(path, lambda file: file.write(content.getbuffer()), sync=False)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file, or a copy of it where file systems do not allow that."""
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        with open(source, "rb") as original:
            write_atomically(target, partial(shutil.copyfileobj, original), sync=False)


def boxes_xywh(labels_HW: NDArray[np.integer[Any]], num_labels: int) -> list[list[int] | None]:
    """The boxes [left, top, width, height] in pixels of the labels 1..num_labels; None for one that does not occur."""
    return [
        None
        if found is None
        else [found[1].start, found[0].start, found[1].stop - found[1].start, found[0].stop - found[0].start]
        for found in ndimage.find_objects(labels_HW, num_labels)
    ]
