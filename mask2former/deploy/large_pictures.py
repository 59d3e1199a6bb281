"""Pictures that are read part by part: TIFF and GeoTIFF through rasterio, other formats decoded once by Pillow.

A part of any of them is (h, w, 3) uint8 RGB. Gray becomes three equal channels, palettes become colors, and values of
more than 8 bits in a TIFF are scaled by a range that the caller must give: no guess would fit photographs, radar and
elevation alike.
"""

# (H, W) pixels of the picture, (h, w) of a part of it, C bands.

from __future__ import annotations

import importlib.util
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mask2former.deploy.decoding import PICTURE_FORMATS, PictureError

__all__ = ["ArrayPicture", "Georeference", "LargePicture", "PictureError", "open_picture"]

#: Pixels of a picture that is opened unless the caller allows more: 30,000 x 30,000 and a little.
MAX_PIXELS = 10**9

_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GRAY_MODES = ("1", "L", "P")  # one byte per pixel in Pillow's memory; the colors take four
_DEEP_MODES = ("I", "F")  # and "I;16" with its byte orders
_ORIENTATION = 274  # EXIF
#: Of 16 bits in PNG files, whose format says that the highest value is white; in TIFF files it may be anything.
_WHOLE_RANGE = (0.0, 65535.0)


class Georeference(NamedTuple):
    """Where a picture lies on the earth."""

    crs: Any  # rasterio's CRS, or None where the file has a transform only
    transform: Any  # affine.Affine: pixel corner (x, y) -> coordinates


class Part(NamedTuple):
    """Some pixels of a picture."""

    image: NDArray[np.uint8]  # (h, w, 3) RGB; 0 where there are no data
    valid: NDArray[np.bool_] | None  # (h, w), False where the file has no data; None: every pixel is valid


class LargePicture(ABC):
    """A picture of `size` (H, W) that gives any part of itself; to be closed, or used in a `with` statement."""

    size: tuple[int, int]
    georeference: Georeference | None = None

    @abstractmethod
    def read(self, rows: slice, columns: slice) -> Part:
        """A part inside the picture.

        Raises:
            PictureError: the file is damaged or cut off there.
        """

    def close(self) -> None:  # noqa: B027  nothing is open where it is not overridden
        """Gives the file back."""

    def __enter__(self) -> LargePicture:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class ArrayPicture(LargePicture):
    """An (H, W, 3) uint8 RGB array."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"pictures must be (H, W, 3) uint8 RGB arrays, got {image.dtype} {image.shape}")
        self._image = image
        self.size = (image.shape[0], image.shape[1])

    def read(self, rows: slice, columns: slice) -> Part:
        return Part(self._image[rows, columns], None)


def open_picture(
    path: str | Path,
    *,
    bands: Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    max_pixels: int = MAX_PIXELS,
    memory_budget_mb: int | None = None,
) -> LargePicture:
    """Opens a picture; of a TIFF only the head is read, if rasterio is installed, anything else is decoded.

    Pillow keeps 4 bytes of a decoded color pixel and 1 of a gray one (400 MB of 10,000 x 10,000 in color), twice as
    much for a moment if EXIF data ask to turn it; a progressive JPEG takes 6 more while it is decoded.

    Args:
        bands: numbers (from 1) of the bands of a raster that are red, green and blue, or of one that is gray. Needed
            where a file has two, or more than three, and does not say what they are.
        value_range: the values that become 0 and 255; what lies beyond is cut. Needed where values are not 8 bits.
        max_pixels: a larger picture is refused before it is decoded: a file of a few kilobytes can claim terabytes.
        memory_budget_mb: a picture that takes more than this, as far as its head tells, is refused, too.

    Raises:
        FileNotFoundError: there is no such file.
        PictureError: it cannot be read, or an argument above is missing or does not fit it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"picture {str(path)!r} does not exist")
    if value_range is not None and not value_range[0] < value_range[1]:
        raise ValueError(f"value range {value_range} must ascend")
    with open(path, "rb") as file:
        is_tiff = file.read(4) in _TIFF_HEADS
    if is_tiff and importlib.util.find_spec("rasterio") is not None:
        return _Raster(path, bands, value_range, max_pixels, memory_budget_mb)
    if bands is not None:
        raise PictureError(
            f"{path}: bands are chosen in TIFF files only, which needs rasterio: pip install 'mask2former[deploy]'"
        )
    return _Decoded(path, value_range, max_pixels, memory_budget_mb)


class _Raster(LargePicture):
    """A TIFF, of which rasterio reads the blocks that a part needs."""

    def __init__(
        self,
        path: Path,
        bands: Sequence[int] | None,
        value_range: tuple[float, float] | None,
        max_pixels: int,
        memory_budget_mb: int | None,
    ) -> None:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioError

        self._path, self._read_error = path, RasterioError
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                # The driver by name: a file that pretends to be a TIFF cannot make GDAL open others.
                self._file = rasterio.open(path, driver="GTiff")
        except RasterioError as error:
            raise PictureError(f"{path} is damaged or cut off: {error}") from error
        try:
            self.size = (self._file.height, self._file.width)
            _check_num_pixels(path, self.size, max_pixels)
            self._bands = self._colors(bands)
            dtype = np.dtype(self._file.dtypes[self._bands[0] - 1])
            if dtype.kind == "c":
                raise PictureError(f"{path} has complex values: write their magnitude to a file first")
            self._palette = self._read_palette() if bands is None and len(self._bands) == 1 else None
            self._scale = _Scale(path, dtype, value_range)
            self._check_blocks(memory_budget_mb)
        except PictureError:
            self._file.close()
            raise
        self._has_mask = any("all_valid" not in [flag.name for flag in flags] for flags in self._file.mask_flag_enums)
        if self._file.crs is not None or not self._file.transform.is_identity:
            self.georeference = Georeference(self._file.crs, self._file.transform)

    def _colors(self, bands: Sequence[int] | None) -> list[int]:
        """Bands that become red, green and blue, or the one that becomes gray."""
        if bands is not None:
            if len(bands) not in (1, 3) or not all(1 <= band <= self._file.count for band in bands):
                raise PictureError(
                    f"{self._path}: bands {list(bands)} must be one or three of the {self._file.count} of the file"
                )
            return list(bands)
        meaning = {band: color.name for band, color in enumerate(self._file.colorinterp, start=1)}
        by_name = {name: band for band, name in meaning.items()}
        if {"red", "green", "blue"} <= set(by_name):
            return [by_name["red"], by_name["green"], by_name["blue"]]
        colors = [band for band, name in meaning.items() if name != "alpha"]
        if len(colors) not in (1, 3):
            raise PictureError(
                f"{self._path} has {len(colors)} bands and does not say which are red, green and blue: name them, for "
                "example --bands 1 2 3, or one as gray"
            )
        return colors

    def _read_palette(self) -> NDArray[np.uint8] | None:
        band = self._bands[0]
        if self._file.colorinterp[band - 1].name != "palette":
            return None
        colors = self._file.colormap(band)
        palette = np.zeros((256, 3), dtype=np.uint8)
        for index, color in colors.items():
            if index < len(palette):
                palette[index] = color[:3]
        return palette

    def _check_blocks(self, memory_budget_mb: int | None) -> None:
        """A file of one huge compressed block cannot be read part by part."""
        if memory_budget_mb is None:
            return
        height, width = self._file.block_shapes[0]
        num_bytes = height * width * np.dtype(self._file.dtypes[0]).itemsize * self._file.count
        if num_bytes > memory_budget_mb * 2**20 // 4:
            raise PictureError(
                f"{self._path} is stored in blocks of {height} x {width}, {num_bytes / 2**20:.0f} MiB each, which the "
                f"memory budget of {memory_budget_mb} MiB does not allow: tile it first, for example by gdal_translate "
                "-co TILED=YES, or raise the budget"
            )

    def read(self, rows: slice, columns: slice) -> Part:
        window = ((rows.start, rows.stop), (columns.start, columns.stop))
        try:
            values_Chw = self._file.read(self._bands, window=window)
            valid_hw = self._file.dataset_mask(window=window) > 0 if self._has_mask else None
        except self._read_error as error:
            place = f"rows {rows.start}-{rows.stop}, columns {columns.start}-{columns.stop}"
            raise PictureError(f"{self._path} is damaged or cut off at {place}: {error}") from error
        if values_Chw.dtype.kind == "f":
            finite_hw = np.isfinite(values_Chw).all(axis=0)
            if not finite_hw.all():
                valid_hw = finite_hw if valid_hw is None else valid_hw & finite_hw
        if valid_hw is not None and valid_hw.all():
            valid_hw = None
        bytes_Chw = self._scale(values_Chw)
        if self._palette is not None:
            image = self._palette[bytes_Chw[0]]
        else:
            image = np.ascontiguousarray(np.broadcast_to(bytes_Chw, (3, *bytes_Chw.shape[1:])).transpose(1, 2, 0))
        if valid_hw is not None:
            image[~valid_hw] = 0
        return Part(image, valid_hw)

    def close(self) -> None:
        self._file.close()


class _Decoded(LargePicture):
    """A picture that Pillow has decoded; parts are cut out of its memory."""

    def __init__(
        self,
        path: Path,
        value_range: tuple[float, float] | None,
        max_pixels: int,
        memory_budget_mb: int | None,
    ) -> None:
        self._path = path
        try:
            with _without_pillow_limit():
                picture: Image.Image = Image.open(path, formats=PICTURE_FORMATS)
                _check_num_pixels(path, picture.size[::-1], max_pixels)
                self._check_memory(picture, memory_budget_mb)
                picture.load()
        except UnidentifiedImageError as error:
            raise PictureError(
                f"{path} is no picture, or its head is damaged; formats are {', '.join(PICTURE_FORMATS)}"
            ) from error
        except PictureError:
            raise
        # As in `decoding`: what Pillow raises for damaged files, and what its parsers stumble over.
        except (OSError, SyntaxError, ValueError, EOFError, zlib.error, TypeError, IndexError, KeyError) as error:
            raise PictureError(f"{path} is damaged or cut off: {error}") from error
        self._is_deep = picture.mode in _DEEP_MODES or picture.mode.startswith("I;16")
        dtype = np.dtype({"F": np.float32, "I": np.int32}.get(picture.mode, np.uint16) if self._is_deep else np.uint8)
        if dtype == np.uint16 and value_range is None and picture.format != "TIFF":
            value_range = _WHOLE_RANGE
        self._scale = _Scale(path, dtype, value_range)
        if picture.getexif().get(_ORIENTATION, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
        self._picture = picture
        self.size = (picture.height, picture.width)

    def _check_memory(self, picture: Image.Image, memory_budget_mb: int | None) -> None:
        num_bytes = picture.width * picture.height * (1 if picture.mode in _GRAY_MODES else 4)
        if memory_budget_mb is not None and num_bytes > memory_budget_mb * 2**20:
            raise PictureError(
                f"{self._path} takes {num_bytes / 2**20:.0f} MiB when it is decoded, more than the memory budget of "
                f"{memory_budget_mb} MiB: convert it to a tiled TIFF, which is read part by part, for example by "
                "gdal_translate -co TILED=YES, or raise the budget"
            )

    def read(self, rows: slice, columns: slice) -> Part:
        with _without_pillow_limit():  # which holds for parts, too
            part = self._picture.crop((columns.start, rows.start, columns.stop, rows.stop))
        if self._is_deep:
            image = self._scale(np.asarray(part))
            return Part(np.repeat(image[:, :, None], 3, axis=2), None)
        return Part(self._scale(np.array(part.convert("RGB"))), None)

    def close(self) -> None:
        self._picture.close()


class _Scale:
    """Values as they are stored -> 0..255."""

    def __init__(self, path: Path, dtype: np.dtype[Any], value_range: tuple[float, float] | None) -> None:
        if value_range is None and dtype != np.uint8:
            limits = f"{np.iinfo(dtype).min} {np.iinfo(dtype).max}" if dtype.kind in "iu" else "0 1"
            raise PictureError(
                f"{path} has values of type {dtype}: say which of them are black and white, for example --value-range "
                f"{limits}"
            )
        self._range = value_range

    def __call__(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        if self._range is None:
            return values
        low, high = self._range
        shares = (np.nan_to_num(values.astype(np.float32), nan=low) - low) / (high - low)
        scaled: NDArray[np.uint8] = (np.clip(shares, 0, 1) * 255 + 0.5).astype(np.uint8)
        return scaled


def _check_num_pixels(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise PictureError(
            f"{path} claims {size[0]} x {size[1]} pixels, more than the {max_pixels:,} that are allowed: if it is "
            "really that large, raise the limit (--max-pixels)"
        )


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Pillow's own limit, which is the same for the whole program, gives way to the caller's."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
