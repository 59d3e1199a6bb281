"""Encoded pictures of strangers to arrays: what they are is read from their bytes, their size before any pixel."""

from __future__ import annotations

import io
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["PICTURE_FORMATS", "PictureError", "PictureTooLargeError", "decode_picture"]

#: Pillow's names of what is decoded. The others that it knows start programs (EPS) or are rare and little tested.
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_16_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_UNSCALED_MODES = ("I", "F")  # 32-bit integers and floats: nothing says which value is white


class PictureError(ValueError):
    """These bytes are no picture that can be decoded; the message is a sentence for whoever sent them."""


class PictureTooLargeError(PictureError):
    """The picture has more pixels than are allowed."""


def decode_picture(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """The picture in `data`, as a viewer shows it and as `data.reading.read_image` gives it.

    The first frame of an animation or page of a TIFF; turned as the EXIF data ask for; palette, gray, CMYK and the like
    as RGB; transparency dropped, so that the color beneath shows; of 16 bits the upper eight.

    Args:
        data: a whole file in one of `PICTURE_FORMATS`.
        max_pixels: a picture whose head states more than this is not decoded.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        PictureTooLargeError: too many pixels.
        PictureError: no picture, damaged, cut off, without pixels, or with values whose range nobody knows.
    """
    try:
        with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as picture:
            width, height = picture.size
            if width < 1 or height < 1:
                raise PictureError(f"the picture has no pixels: {width} x {height}")
            if width * height > max_pixels:
                raise PictureTooLargeError(
                    f"the picture has {width} x {height} pixels, more than the {max_pixels:,} that are accepted; "
                    "send a smaller one"
                )
            return _rgb(picture)
    except UnidentifiedImageError as error:
        raise PictureError(f"this is no picture, or a damaged one; send one of {', '.join(PICTURE_FORMATS)}") from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, which it checks before ours can be
        raise PictureTooLargeError(f"the picture has more than the {max_pixels:,} pixels that are accepted") from error
    except PictureError:
        raise
    # What Pillow raises for damaged files: OSError (cut off), SyntaxError (broken PNG chunk), ValueError (data left
    # out), zlib.error, EOFError (damaged compression), and what its parsers stumble over.
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, TypeError, IndexError, KeyError) as error:
        raise PictureError(f"the picture is damaged or cut off: {error}") from error


def _rgb(picture: Image.Image) -> NDArray[np.uint8]:
    if picture.mode in _UNSCALED_MODES:
        raise PictureError(
            f"the picture stores 32-bit {'floats' if picture.mode == 'F' else 'integers'}, whose range is unknown; "
            "convert it to 8 or 16 bits"
        )
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode in _16_BIT_MODES:
        gray_HW: NDArray[np.uint8] = (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(gray_HW[:, :, None], 3, axis=2)
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
