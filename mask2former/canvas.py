"""Painting labeled regions over a picture: translucent fills, outlines, tight boxes and names that stay legible."""

# H, W pixels of the picture as given; h, w pixels of the canvas, `scale` times larger; (x, y) in canvas pixels.

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

__all__ = ["Region", "add_caption", "display_scale", "enlarge", "paint_regions"]

Box = tuple[float, float, float, float]  # left, top, right, bottom
Color = tuple[int, int, int]  # RGB, 0..255

#: Pictures are enlarged by a whole factor until their shorter side reaches this: a name is some ten pixels high.
_MIN_DISPLAY_SIDE = 320
#: Unless the longer side would exceed this: a strip of a few rows would become a picture of gigabytes.
_MAX_DISPLAY_SIDE = 4096


class Region(NamedTuple):
    """One segment to paint."""

    mask: NDArray[np.bool_]  # (H, W)
    text: str  # an empty text paints no label
    color: Color
    has_box: bool = False


class _Placed(NamedTuple):
    """A region on the canvas: its tight box and the part of its mask inside that box."""

    box: tuple[int, int, int, int]  # left, top, right, bottom; the last two exclusive
    mask: NDArray[np.bool_]
    region: Region


def display_scale(height: int, width: int) -> int:
    """The whole factor >= 1 by which a picture of this size is enlarged before names are written on it."""
    return max(1, min(-(-_MIN_DISPLAY_SIDE // min(height, width)), _MAX_DISPLAY_SIDE // max(height, width)))


def enlarge(image: NDArray[np.uint8], scale: int | None = None) -> NDArray[np.uint8]:
    """(scale * H, scale * W, 3): the picture as `paint_regions` shows it below the paint; None: `display_scale`."""
    height, width = image.shape[:2]
    scale = display_scale(height, width) if scale is None else scale
    if scale == 1:
        return image
    return np.asarray(Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC))


def paint_regions(
    image: NDArray[np.uint8], regions: Sequence[Region], *, alpha: float = 0.5, scale: int | None = None
) -> NDArray[np.uint8]:
    """Paints regions in the given order, then all boxes, then all names.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        regions: segments; those without a pixel are skipped.
        alpha: opacity of the fills in [0, 1].
        scale: factor by which the picture is enlarged; None: `display_scale`.

    Returns:
        (scale * H, scale * W, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    scale = display_scale(height, width) if scale is None else scale
    size = (width * scale, height * scale)
    canvas_hw3 = enlarge(image, scale).copy()
    font_size = max(12, round((size[0] * size[1]) ** 0.5 / 50))
    line_width = max(1, font_size // 10)

    placed = [item for region in regions if (item := _place(region, size)) is not None]
    for item in placed:
        _fill(canvas_hw3, item, alpha, line_width)
    picture = Image.fromarray(canvas_hw3)
    pen = ImageDraw.Draw(picture, "RGBA")
    for item in placed:
        if item.region.has_box:
            left, top, right, bottom = item.box
            pen.rectangle(
                (left, top, right - 1, bottom - 1), outline=(*_lightened(item.region.color), 230), width=line_width
            )
    _write_names(pen, placed, size, font_size)
    return np.asarray(picture)


def add_caption(picture: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    """(h + bar, w, 3): the picture under a white bar with a centered caption that is cut off where it does not fit."""
    height, width = picture.shape[:2]
    font = _font(max(12, round((height * width) ** 0.5 / 28)))
    bar_height = round(font.size * 1.6)
    bar = Image.new("RGB", (width, bar_height), (255, 255, 255))
    while len(caption) > 1 and font.getlength(caption) > width:
        caption = caption.rstrip("…")[:-1] + "…"
    ImageDraw.Draw(bar).text((width / 2, bar_height / 2), caption, fill=(0, 0, 0), font=font, anchor="mm")
    return np.concatenate([np.asarray(bar), picture])


def _place(region: Region, size: tuple[int, int]) -> _Placed | None:
    """Enlarges the mask to the canvas and cuts out its tight box; None if the mask is empty."""
    mask_hw = np.asarray(region.mask, dtype=bool)
    if not mask_hw.any():
        return None
    if mask_hw.shape != (size[1], size[0]):
        gray = Image.fromarray(mask_hw.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
        mask_hw = np.asarray(gray) >= 128
    rows, columns = np.flatnonzero(mask_hw.any(1)), np.flatnonzero(mask_hw.any(0))
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return _Placed((left, top, right, bottom), mask_hw[top:bottom, left:right], region)


def _fill(canvas_hw3: NDArray[np.uint8], item: _Placed, alpha: float, line_width: int) -> None:
    """Blends the color into the region and draws its rim in a lighter tone (in place)."""
    left, top, right, bottom = item.box
    window = canvas_hw3[top:bottom, left:right]
    color = np.array(item.region.color, dtype=np.float32)
    window[item.mask] = (window[item.mask] * (1 - alpha) + color * alpha).astype(np.uint8)
    inner = item.mask
    for _ in range(line_width):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    window[item.mask & ~inner] = _lightened(item.region.color)


def _lightened(color: Color) -> Color:
    """Halfway to white: a rim that stands out from the fill and, for dark colors, from the picture."""
    red, green, blue = (channel // 2 + 127 for channel in color)
    return red, green, blue


def _write_names(pen: ImageDraw.ImageDraw, placed: list[_Placed], size: tuple[int, int], font_size: int) -> None:
    """Writes each name where it hides the least of the names written before; large regions choose last."""
    font = _font(font_size)
    taken: list[Box] = []
    for item in sorted(placed, key=lambda item: int(item.mask.sum())):
        if not item.region.text:
            continue
        text_width, text_height = font.getlength(item.region.text) + 0.6 * font_size, 1.3 * font_size
        options = [_clamp(option, size) for option in _label_boxes(item, text_width, text_height)]
        box = min(options, key=lambda option: sum(_overlap(option, other) for other in taken))
        taken.append(box)
        dark = tuple(int(0.45 * channel) for channel in item.region.color)
        pen.rounded_rectangle(box, radius=0.25 * font_size, fill=(*dark, 210))
        center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        pen.text(center, item.region.text, fill=(255, 255, 255, 255), font=font, anchor="mm")


def _label_boxes(item: _Placed, width: float, height: float) -> list[Box]:
    """Places for a name, the best first: at the corners of a box, or around the innermost point of a region without."""
    left, top, right, bottom = (float(edge) for edge in item.box)
    if item.region.has_box:
        corners = [(left, top - height), (left, bottom), (left, top), (left, bottom - height), (right, top)]
        corners += [(right - width, top - height), (right - width, bottom), (left - width, top)]
    else:
        column, row = _innermost_point(item.mask)
        x, y = left + column - width / 2, top + row - height / 2
        corners = [(x, y + shift * height) for shift in (0, 1, -1, 2, -2)]
    return [(x, y, x + width, y + height) for x, y in corners]


def _innermost_point(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """(x, y) of the pixel farthest from the region's rim; on a coarser grid when the region is large."""
    step = max(1, max(mask.shape) // 160)
    distance = distance_transform_edt(np.pad(mask[::step, ::step], 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(x) * step, int(y) * step


def _clamp(box: Box, size: tuple[int, int]) -> Box:
    """Moves a box into the canvas; one that is larger than the canvas sticks to the left and top."""
    left = max(0.0, min(box[0], size[0] - (box[2] - box[0])))
    top = max(0.0, min(box[1], size[1] - (box[3] - box[1])))
    return (left, top, left + box[2] - box[0], top + box[3] - box[1])


def _overlap(first: Box, second: Box) -> float:
    """Common area in pixels."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib, which Detectron2 needs anyway, ships a font that covers Latin, Greek and Cyrillic names.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
