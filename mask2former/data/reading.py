"""Reads pictures and label pictures; whatever is wrong with a file is said with its name."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

_EXIF_ORIENTATION = 274
_QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


class BrokenSampleError(ValueError):
    """A file of one sample is missing, cut off, or does not fit the sample's other files.

    `DATALOADER.SKIP_BROKEN` lets training go on without such samples.
    """


def read_image(path: str, image_format: str) -> NDArray[np.uint8]:
    """The picture as (H, W, 3) uint8 in `image_format` ("RGB" or "BGR"), turned as its EXIF data ask for."""
    return _read(path, image_format)


def read_shrunken_image(path: str, image_format: str, smallest: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture of `read_image`, a JPEG file decoded at 1/2, 1/4 or 1/8 of its size where that is still large enough.

    Args:
        smallest: (height, width) below which it must not shrink.
    """

    def decode() -> NDArray[np.uint8]:
        with PathManager.open(path, "rb") as file:
            picture = Image.open(file)
            height, width = smallest[::-1] if _is_turned(picture) else smallest
            picture.draft(None, (width, height))  # of other formats than JPEG this does nothing
            turned = ImageOps.exif_transpose(picture)
            pixels: NDArray[np.uint8] = detection_utils.convert_PIL_to_numpy(turned, image_format)
            return pixels

    return _decoded(path, decode)


def read_panoptic_ids(path: str) -> NDArray[np.uint8]:
    """A panoptic PNG as (H, W, 3) uint8, still in RGB so that Detectron2's transforms can resize it."""
    return _read(path, "RGB")


def read_class_map(path: str) -> NDArray[Any]:
    """A label picture as (H, W), uint8 when it is stored so (palette indices included), else int32."""
    labels = _read(path, None)
    if labels.ndim != 2:
        raise BrokenSampleError(f"{path} must be a gray or palette label picture, got an array of shape {labels.shape}")
    return labels if labels.dtype == np.uint8 else labels.astype(np.int32)


def read_size(path: str) -> tuple[int, int]:
    """(height, width) of a picture, from the head of its file only."""
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as picture:
            width, height = picture.size
            is_turned = _is_turned(picture)
    except (OSError, SyntaxError) as error:
        raise BrokenSampleError(_complaint(path, error)) from error
    return (width, height) if is_turned else (height, width)


def check_size(path: str, size: tuple[int, ...], expected: tuple[int, ...], expected_by: str) -> None:
    """Raises BrokenSampleError when a picture's (height, width) is not the one that `expected_by` has."""
    found, wanted = tuple(size[:2]), tuple(expected[:2])
    if found != wanted:
        raise BrokenSampleError(f"{path} has (height, width) {found}, but {expected_by} has {wanted}")


def _is_turned(picture: Image.Image) -> bool:
    # Without this question Pillow decodes a whole PNG in search of EXIF data behind the pixels.
    has_exif = "exif" in picture.info or picture.format == "TIFF"
    return has_exif and picture.getexif().get(_EXIF_ORIENTATION, 1) in _QUARTER_TURNS


def _read(path: str, image_format: str | None) -> NDArray[Any]:
    return _decoded(path, lambda: detection_utils.read_image(path, format=image_format))


def _decoded(path: str, decode: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    try:
        pixels = decode()
    # What Pillow raises for damaged files: OSError (missing, cut off), SyntaxError (broken PNG chunk), ValueError (data
    # left out), zlib.error and EOFError (damaged compression).
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError) as error:
        raise BrokenSampleError(_complaint(path, error)) from error
    return pixels


def _complaint(path: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist"
    if isinstance(error, UnidentifiedImageError):
        return f"{path} is not a picture or its head is damaged"
    return f"{path} cannot be read, it is damaged or cut off: {error}"
