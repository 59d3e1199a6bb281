"""Clips of moving digit discs, whose truth is known, and the shipped model that knows them."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mask2former.config import load_config
from mask2former.data.datasets.digits import Disc, Scene, Texture, draw_scene, load_material
from mask2former.deploy.predictor import Predictor
from mask2former.deploy.results import Segmentation

SIZE = 96
WEIGHTS = ("MODEL.WEIGHTS", "weights/digits_panoptic.safetensors")
TEXTURES = (Texture(0, 0, 0, 80, 0, (0.9, 0.8, 0.7)), Texture(1, 0, 0, 80, 0, (0.6, 0.9, 0.6)))
COLORS = {3: (0.9, 0.2, 0.2), 7: (0.2, 0.3, 0.9), 0: (0.9, 0.8, 0.2)}


class Path(NamedTuple):
    """A disc with this digit that moves evenly from one point (x, y) to another."""

    digit: int
    start: tuple[float, float]
    end: tuple[float, float]


class DiscClip(NamedTuple):
    frames: list[NDArray[np.uint8]]
    masks: list[dict[int, NDArray[np.bool_]]]  # of every frame the pixels of the disc with this digit


def disc_clip(*paths: Path, num_frames: int, size: int = SIZE) -> DiscClip:
    """Later discs cover earlier ones."""
    material = load_material("val")
    frames, masks = [], []
    for number in range(num_frames):
        share = number / (num_frames - 1)
        discs = []
        for path in paths:
            x, y = (start + share * (end - start) for start, end in zip(path.start, path.end, strict=True))
            picture = int(np.flatnonzero(material.labels == path.digit)[4])
            center = (x * size / SIZE, y * size / SIZE)
            discs.append(Disc(center, 17.0 * size / SIZE, picture, path.digit, 0.0, COLORS[path.digit]))
        scene = Scene(size, (size / 2, size / 2), 0.3, TEXTURES, tuple(discs), number)
        drawn = draw_scene(scene, material)
        frames.append(drawn.image)
        masks.append({segment.category: segment.mask for segment in drawn.segments if segment.is_thing})
    return DiscClip(frames, masks)


@cache
def digits_predictor(*overrides: object) -> Predictor:
    """The shipped model, on the CPU."""
    cfg = load_config("configs/digits/panoptic.yaml", [*WEIGHTS, "MODEL.DEVICE", "cpu", *overrides])
    return Predictor.from_config(cfg)


def identities(clip: DiscClip, results: list[Segmentation], digit: int) -> list[int | None]:
    """Of every frame the identity of the segment that has most of what is seen of a disc; None if none fits."""
    found: list[int | None] = []
    for masks, segmentation in zip(clip.masks, results, strict=True):
        truth = masks.get(digit, np.zeros(clip.frames[0].shape[:2], dtype=bool))
        fitting = [
            segment.track_id
            for segment in segmentation.segments
            if segment.is_thing and 2 * (segment.bitmap() & truth).sum() > (segment.bitmap() | truth).sum()
        ]
        found.append(fitting[0] if fitting else None)
    return found
