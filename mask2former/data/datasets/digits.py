"""Digit-disc scenes: the embedded dataset that makes everything run without a download.

A scene is two tinted photographs of brick, grass or gravel (stuff) that meet along a random line, and one to four
colored discs (things), each bearing one handwritten digit; the disc is the mask and the digit its class. The material
ships inside scikit-learn (1,797 digits) and scikit-image (three photographs), so both are imported only when scenes are
made. A scene is drawn from a description (`Scene`); digit_clips.py moves the discs of a description.
"""

# H, W pixels; (x, y) positions are in pixels from the top left corner, pixel centers lie at +0.5.

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val")
NUM_DIGITS = 10
TEXTURES = ("brick", "grass", "gravel")

# scikit-learn keeps the digits in the order in which they were collected, writer after writer: each writer's part
# begins with 0..9 written out two or three times. The last three parts (21 %) are the validation writers.
_FIRST_VALIDATION_DIGIT = 1415
# Photographs are 512 pixels wide: columns from here on are seen in validation only.
_FIRST_VALIDATION_COLUMN = 384
# A segment of which less than this share can be seen becomes void: nobody could tell what it is.
_MIN_VISIBLE_SHARE = 0.1
_MAX_DISCS = 4

VOID = 255


class Material(NamedTuple):
    """What the scenes of one split are made of; no pixel of it occurs in the other split."""

    digits: NDArray[np.float32]  # (N, 8, 8) ink in [0, 1]
    labels: NDArray[np.int64]  # (N,) digit 0..9
    textures: tuple[NDArray[np.uint8], ...]  # three gray pictures, one for each of TEXTURES


@dataclass(frozen=True)
class Texture:
    """One side of the background: a window of a photograph, stretched over the whole scene."""

    kind: int  # index into TEXTURES
    top: int
    left: int
    side: int  # of the window, in pixels of the photograph
    quarter_turns: int
    tint: tuple[float, float, float]  # RGB in [0, 1]


@dataclass(frozen=True)
class Disc:
    """A colored disc with one digit on it."""

    center: tuple[float, float]  # (x, y)
    radius: float
    picture: int  # index into Material.digits
    digit: int  # the class, 0..9
    angle: float  # of the digit, in radians
    color: tuple[float, float, float]  # RGB in [0, 1]


@dataclass(frozen=True)
class Scene:
    """Everything that is needed to draw a picture and its labels; later discs cover earlier ones."""

    size: int
    line_point: tuple[float, float]  # (x, y) on the line between the textures
    line_angle: float  # of the line's normal, in radians
    textures: tuple[Texture, Texture]
    discs: tuple[Disc, ...]
    noise_seed: int


class Segment(NamedTuple):
    """One visible segment: a class 0..12 (things first) and its pixels."""

    category: int
    is_thing: bool
    is_whole: bool  # nothing covers any part of it
    mask: NDArray[np.bool_]  # (H, W)
    disc: int | None  # index into Scene.discs; None for a texture


class DrawnScene(NamedTuple):
    """A picture, and the segments that can be seen in it; pixels in no segment are void."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    segments: list[Segment]


@cache
def load_material(split: str) -> Material:
    """The digits and photographs of one split ("train" or "val")."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; choose from {list(SPLITS)}")
    try:
        from skimage import data as photographs
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is missing: digit scenes are made of pictures inside scikit-learn and scikit-image; "
            "pip install scikit-learn scikit-image",
            name=error.name,
        ) from error

    bunch = load_digits()
    is_validation = split == "val"
    chosen = slice(_FIRST_VALIDATION_DIGIT, None) if is_validation else slice(None, _FIRST_VALIDATION_DIGIT)
    columns = slice(_FIRST_VALIDATION_COLUMN, None) if is_validation else slice(None, _FIRST_VALIDATION_COLUMN)
    textures = tuple(np.ascontiguousarray(getattr(photographs, name)()[:, columns]) for name in TEXTURES)
    return Material((bunch.images[chosen] / 16).astype(np.float32), bunch.target[chosen].astype(np.int64), textures)


def sample_scene(material: Material, *, size: int, random: np.random.Generator, min_discs: int = 1) -> Scene:
    """Draws a random scene of size x size pixels with min_discs..4 discs."""
    kinds = random.permutation(len(TEXTURES))[:2]
    textures = tuple(_sample_texture(material, int(kind), random) for kind in kinds)
    x, y = random.uniform(0.3, 0.7, 2) * size
    angle = random.uniform(0, 2 * np.pi)
    discs: list[Disc] = []
    for _ in range(int(random.integers(min_discs, _MAX_DISCS + 1))):
        radius = random.uniform(0.13, 0.23) * size
        discs.append(_sample_disc(material, radius, _free_place(discs, radius, size, random), random))
    noise_seed = int(random.integers(2**31))
    return Scene(size, (float(x), float(y)), float(angle), (textures[0], textures[1]), tuple(discs), noise_seed)


def draw_scene(scene: Scene, material: Material) -> DrawnScene:
    """Draws the picture and the visible (modal) segments of a scene."""
    size = scene.size
    y_HW, x_HW = np.mgrid[:size, :size] + 0.5
    x, y = scene.line_point
    distance_HW = (x_HW - x) * np.cos(scene.line_angle) + (y_HW - y) * np.sin(scene.line_angle)
    beyond_HW = distance_HW > 0
    share_HW1 = np.clip(distance_HW + 0.5, 0, 1)[..., None]
    first_HW3, second_HW3 = (_draw_texture(texture, material, size) for texture in scene.textures)
    picture_HW3 = first_HW3 * (1 - share_HW1) + second_HW3 * share_HW1

    full_masks = [~beyond_HW, beyond_HW]
    categories = [NUM_DIGITS + texture.kind for texture in scene.textures]
    top_layer_HW = beyond_HW.astype(np.int64)
    for disc in scene.discs:
        disc_HW = _draw_disc(picture_HW3, disc, material, x_HW, y_HW)
        top_layer_HW[disc_HW] = len(full_masks)
        full_masks.append(disc_HW)
        categories.append(disc.digit)

    noise_HW3 = np.random.default_rng(scene.noise_seed).normal(0, 0.02, picture_HW3.shape)
    image_HW3 = (np.clip(picture_HW3 + noise_HW3, 0, 1) * 255).round().astype(np.uint8)
    segments = []
    for layer, (full_HW, category) in enumerate(zip(full_masks, categories, strict=True)):
        visible_HW = top_layer_HW == layer
        num_full, num_visible = int(full_HW.sum()), int(visible_HW.sum())
        if num_visible > 0 and num_visible >= _MIN_VISIBLE_SHARE * num_full:
            disc_index = layer - len(scene.textures) if category < NUM_DIGITS else None
            is_whole = num_visible == num_full
            segments.append(Segment(category, category < NUM_DIGITS, is_whole, visible_HW, disc_index))
    return DrawnScene(image_HW3, segments)


def scene_random(seed: int, split: str, index: int) -> np.random.Generator:
    """The random numbers of one scene: they depend on nothing but these three values."""
    return np.random.default_rng((seed, SPLITS.index(split), index))


def digit_crops(split: str, size: int, random: np.random.Generator) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Endless single-object pictures for the pre-training of a backbone, the stand-in for ImageNet.

    Yields:
        ((size, size, 3) uint8 RGB, class): ten times in thirteen a disc with its digit on one texture (class 0..9),
        else a texture alone (class 10..12).
    """
    material = load_material(split)
    num_classes = NUM_DIGITS + len(TEXTURES)
    while True:
        category = int(random.integers(num_classes))
        is_digit = category < NUM_DIGITS
        kind = int(random.integers(len(TEXTURES))) if is_digit else category - NUM_DIGITS
        texture = _sample_texture(material, kind, random, scale=0.5)
        discs: tuple[Disc, ...] = ()
        if is_digit:
            radius = random.uniform(0.32, 0.48) * size
            center = tuple(size / 2 + random.uniform(-0.12, 0.12, 2) * size)
            discs = (_sample_disc(material, radius, center, random, digit=category),)
        scene = Scene(size, (0.0, 0.0), 0.0, (texture, texture), discs, int(random.integers(2**31)))
        yield draw_scene(scene, material).image, category


def _sample_texture(material: Material, kind: int, random: np.random.Generator, scale: float = 1.0) -> Texture:
    height, width = material.textures[kind].shape
    side = int(random.integers(int(72 * scale), int(112 * scale) + 1))
    top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
    red, green, blue = random.uniform(0.45, 1.0, 3)
    return Texture(kind, top, left, side, int(random.integers(4)), (float(red), float(green), float(blue)))


def _sample_disc(
    material: Material,
    radius: float,
    center: tuple[float, float],
    random: np.random.Generator,
    digit: int | None = None,
) -> Disc:
    digit = int(random.integers(NUM_DIGITS)) if digit is None else digit
    picture = int(random.choice(np.flatnonzero(material.labels == digit)))
    color = colorsys.hsv_to_rgb(random.uniform(), random.uniform(0.45, 0.95), random.uniform(0.4, 1.0))
    return Disc(center, float(radius), picture, digit, float(random.uniform(-0.25, 0.25)), color)


def _free_place(discs: list[Disc], radius: float, size: int, random: np.random.Generator) -> tuple[float, float]:
    """A center whose disc covers at most the rim of others, or any place inside the picture when it is too crowded."""
    x = y = 0.0
    for _ in range(30):
        x, y = (float(value) for value in random.uniform(0.9 * radius, size - 0.9 * radius, 2))
        if all(np.hypot(x - d.center[0], y - d.center[1]) >= 0.7 * (radius + d.radius) for d in discs):
            break
    return x, y


def _draw_texture(texture: Texture, material: Material, size: int) -> NDArray[np.float64]:
    """(H, W, 3) in [0, 1]; all photographs get one mean and contrast, so that only the pattern tells them apart."""
    from PIL import Image

    rows, columns = (slice(start, start + texture.side) for start in (texture.top, texture.left))
    window = Image.fromarray(np.rot90(material.textures[texture.kind][rows, columns], texture.quarter_turns).copy())
    gray_HW = np.asarray(window.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float64)
    normalized_HW = (gray_HW - gray_HW.mean()) / (gray_HW.std() + 1e-6)
    return np.clip(0.6 + 0.2 * normalized_HW, 0, 1)[..., None] * np.array(texture.tint)


def _draw_disc(
    picture_HW3: NDArray[np.float64],
    disc: Disc,
    material: Material,
    x_HW: NDArray[np.float64],
    y_HW: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Paints the disc into the picture with a soft rim and returns its pixels, (H, W) bool."""
    from scipy.ndimage import map_coordinates

    dx_HW, dy_HW = x_HW - disc.center[0], y_HW - disc.center[1]
    distance_HW = np.hypot(dx_HW, dy_HW)
    cover_HW1 = np.clip(disc.radius - distance_HW + 0.5, 0, 1)[..., None]
    # The digit's 8 x 8 cells fill the square inside the disc, turned by the disc's angle.
    cells_per_pixel = 8 / (2**0.5 * 0.95 * disc.radius)
    cos, sin = np.cos(disc.angle) * cells_per_pixel, np.sin(disc.angle) * cells_per_pixel
    rows_HW = -sin * dx_HW + cos * dy_HW + 3.5
    columns_HW = cos * dx_HW + sin * dy_HW + 3.5
    ink_HW1 = map_coordinates(material.digits[disc.picture], [rows_HW, columns_HW], order=1)[..., None]
    color = np.array(disc.color)
    ink_color = np.zeros(3) + (0.05 if color @ (0.299, 0.587, 0.114) > 0.45 else 0.95)
    picture_HW3 += cover_HW1 * (color + ink_HW1 * (ink_color - color) - picture_HW3)
    return distance_HW <= disc.radius
