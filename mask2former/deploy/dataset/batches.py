"""What a worker does with a batch, whoever runs it: decode, segment, and make records of the results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mask2former.data.reading import BrokenSampleError, read_image
from mask2former.deploy.dataset.inputs import Row
from mask2former.deploy.decoding import PictureError, decode_picture
from mask2former.deploy.results import MaskFormat, Task
from mask2former.deploy.runtime import Segmenter

__all__ = ["KILLED", "BatchSegmenter", "Record", "broken"]

#: `name`, and either what `Segmentation.to_json` gives or `error`: why there is no result.
Record = dict[str, Any]

#: Why a picture is given up that ends the process working at it each time.
KILLED = "the process that segmented it was killed twice, probably because memory ran out"

_MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or sys.maxsize)  # where Pillow refuses files, too
_DECODERS = 4  # threads: decoders let each other run
# What one picture can cause while others are fine. Any other error is the model's, and ends the run.
_ERRORS_OF_A_PICTURE = (ValueError, MemoryError, torch.OutOfMemoryError)


class BatchSegmenter:
    """Turns rows into records.

    Args:
        load: makes a segmenter (see `mask2former.deploy.load`).
        task: one of the segmenter's tasks.
        masks: "rle", "polygons" or "none".
        num_threads: of torch in this process; None leaves them as they are.
    """

    def __init__(
        self, load: Callable[[], Segmenter], *, task: Task, masks: MaskFormat, num_threads: int | None = None
    ) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._segmenter = load()
        self._task = task
        self._masks = masks
        self._decoders = ThreadPoolExecutor(_DECODERS)

    def __call__(self, rows: Sequence[Row]) -> list[Record]:
        """A record of every row, in the same order."""
        pictures = list(self._decoders.map(_decoded, rows))
        whole = [index for index, picture in enumerate(pictures) if not isinstance(picture, str)]
        results = dict(zip(whole, self._segmented([pictures[index] for index in whole]), strict=True))
        return [
            {"name": row.name, **results[index]} if index in results else broken(row, str(pictures[index]))
            for index, row in enumerate(rows)
        ]

    def _segmented(self, pictures: list[Any]) -> list[dict[str, Any]]:
        """The results of decoded pictures; one that fails among others is found by trying each alone."""
        if not pictures:
            return []
        try:
            return [result.to_json(masks=self._masks) for result in self._segmenter(pictures, task=self._task)]
        except _ERRORS_OF_A_PICTURE as error:
            if len(pictures) == 1:
                return [{"error": f"cannot be segmented: {error}"}]
        return [self._segmented([picture])[0] for picture in pictures]


def broken(row: Row, reason: str) -> Record:
    """The record of a picture that has no result."""
    return {"name": row.name, "error": reason}


def _decoded(row: Row) -> NDArray[np.uint8] | str:
    """The picture, (H, W, 3) uint8 RGB, or why there is none."""
    try:
        row.name.encode()
        if row.source is None:
            return "the table has no picture in this row"
        if isinstance(row.source, bytes):
            return decode_picture(row.source, max_pixels=_MOST_PIXELS)
        return read_image(row.source, "RGB")
    except UnicodeEncodeError:
        return "its name is not valid UTF-8"
    except (BrokenSampleError, PictureError) as error:
        return str(error)
