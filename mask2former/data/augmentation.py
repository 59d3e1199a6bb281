"""Random changes of training pictures: what Detectron2 does not have, and the lists that the mappers use.

Every random number is drawn when a transform is made, none when it is applied: one transform can treat all frames of a
clip alike.
"""

# H, W pixels of the picture before, h, w after.

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import PadTransform
from numpy.typing import NDArray

IMAGE_PADDING = 128  # gray value of pixels beyond the picture


class ColorJitter(NamedTuple):
    """Drawn values of the color jitter of SSD (arXiv:1512.02325, Sec. 2.2); None leaves a step out."""

    brightness: float | None  # added
    contrast: float | None  # factor
    saturation: float | None  # factor
    hue: int | None  # added to OpenCV's 8-bit hue, modulo 180
    contrast_first: bool  # contrast before or after saturation and hue


class ColorJitterTransform(T.Transform):  # type: ignore[misc]  # Detectron2 has no types
    """Applies one drawn color jitter; positions and labels stay as they are."""

    def __init__(self, jitter: ColorJitter, image_format: str) -> None:
        super().__init__()
        self.jitter = jitter
        self.image_format = image_format

    def apply_image(self, img: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 in the image format -> the same; each step clips and cuts off to whole values."""
        image = img[..., ::-1] if self.image_format == "RGB" else img
        image = _scale_and_add(image, 1.0, self.jitter.brightness or 0.0)
        if self.jitter.contrast_first:
            image = _scale_and_add(image, self.jitter.contrast, 0.0)
        image = self._change_hue_and_saturation(image)
        if not self.jitter.contrast_first:
            image = _scale_and_add(image, self.jitter.contrast, 0.0)
        return image[..., ::-1] if self.image_format == "RGB" else image

    def apply_coords(self, coords: NDArray[np.float64]) -> NDArray[np.float64]:
        return coords

    def apply_segmentation(self, segmentation: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return segmentation

    def inverse(self) -> T.Transform:
        return T.NoOpTransform()

    def _change_hue_and_saturation(self, bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
        # Going to 8-bit HSV and back rounds, and the original did so once for each of the two steps.
        if self.jitter.saturation is not None:
            hsv = _bgr_to_hsv(bgr)
            hsv[..., 1] = _scale_and_add(hsv[..., 1], self.jitter.saturation, 0.0)
            bgr = _hsv_to_bgr(hsv)
        if self.jitter.hue is not None:
            hsv = _bgr_to_hsv(bgr)
            hsv[..., 0] = (hsv[..., 0].astype(np.int32) + self.jitter.hue) % 180
            bgr = _hsv_to_bgr(hsv)
        return bgr


class RandomColorJitter(T.Augmentation):  # type: ignore[misc]
    """The color jitter of SSD: each step with probability 1/2, in one of two orders."""

    def __init__(self, image_format: str) -> None:
        super().__init__()
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT={image_format!r} has no color jitter; choose from ['RGB', 'BGR']")
        self.image_format = image_format

    def get_transform(self, image: NDArray[np.uint8]) -> T.Transform:
        brightness, contrast, saturation, hue, contrast_first = np.random.uniform(size=5) < 0.5
        jitter = ColorJitter(
            brightness=np.random.uniform(-32, 32) if brightness else None,
            contrast=np.random.uniform(0.5, 1.5) if contrast else None,
            saturation=np.random.uniform(0.5, 1.5) if saturation else None,
            hue=int(np.random.randint(-18, 19)) if hue else None,
            contrast_first=bool(contrast_first),
        )
        return ColorJitterTransform(jitter, self.image_format)


class FixedSizeCrop(T.Augmentation):  # type: ignore[misc]
    """Cuts a random window of a fixed size, and fills it up at the right and the bottom where the picture is smaller.

    Detectron2 has an augmentation of this name; its padding of labels differs from version to version (0, later 255,
    which would be "inside" for a mask), so this one pads labels with 0 always.
    """

    def __init__(self, crop_size: tuple[int, int]) -> None:
        super().__init__()
        self.crop_size = crop_size

    def get_transform(self, image: NDArray[np.uint8]) -> T.Transform:
        size = np.array(image.shape[:2])
        crop = np.array(self.crop_size)
        # One random number for both axes: windows lie on the diagonal of the picture. A wider choice would be better,
        # but the published large-scale-jittering models were trained like this.
        top, left = np.round(np.maximum(size - crop, 0) * np.random.uniform()).astype(int).tolist()
        (height, width), (pad_bottom, pad_right) = np.minimum(size, crop).tolist(), np.maximum(crop - size, 0).tolist()
        original_height, original_width = size.tolist()
        cut = T.CropTransform(left, top, width, height, original_width, original_height)
        pad = PadTransform(0, 0, pad_right, pad_bottom, width, height, pad_value=IMAGE_PADDING, seg_pad_value=0)
        return T.TransformList([cut, pad])


def build_short_side_augmentations(cfg: CfgNode, *, limits_one_class: bool) -> list[T.Augmentation]:
    """Resize by the short side, crop, color jitter, flip: the augmentations of the three `mask_former_*` mappers.

    Args:
        limits_one_class: reject crops that one class fills more than INPUT.CROP.SINGLE_CATEGORY_MAX_AREA of.
    """
    augmentations: list[T.Augmentation] = [
        T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    ]
    crop = cfg.INPUT.CROP
    if crop.ENABLED and limits_one_class:
        augmentations.append(
            T.RandomCrop_CategoryAreaConstraint(
                crop.TYPE, crop.SIZE, crop.SINGLE_CATEGORY_MAX_AREA, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
            )
        )
    elif crop.ENABLED:
        augmentations.append(T.RandomCrop(crop.TYPE, crop.SIZE))
    if cfg.INPUT.COLOR_AUG_SSD:
        augmentations.append(RandomColorJitter(cfg.INPUT.FORMAT))
    return augmentations + _flips(cfg)


def build_large_scale_jitter(cfg: CfgNode) -> list[T.Augmentation]:
    """Flip, then large-scale jittering (LSJ, arXiv:2012.07177) to a square of INPUT.IMAGE_SIZE."""
    side = cfg.INPUT.IMAGE_SIZE
    resize = T.ResizeScale(cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE, side, side)
    return [*_flips(cfg), resize, FixedSizeCrop((side, side))]


def build_clip_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Crop, resize by the short side, flip, and what INPUT.AUGMENTATIONS names; each is drawn once for all frames.

    The published words "choice_by_clip", "range_by_clip" and "flip_by_clip" therefore mean what "choice", "range" and
    "horizontal" do.
    """
    augmentations: list[T.Augmentation] = []
    if cfg.INPUT.CROP.ENABLED:
        augmentations.append(T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    sampling = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING.removesuffix("_by_clip")
    augmentations.append(T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, sampling))
    augmentations += [T.RandomFlip()] if cfg.INPUT.RANDOM_FLIP == "flip_by_clip" else _flips(cfg)
    for name in cfg.INPUT.AUGMENTATIONS:
        if name not in _CLIP_AUGMENTATIONS:
            raise ValueError(
                f"INPUT.AUGMENTATIONS names {name!r}, which is unknown; choose from {', '.join(_CLIP_AUGMENTATIONS)}"
            )
        augmentations.append(_CLIP_AUGMENTATIONS[name]())
    return augmentations


_CLIP_AUGMENTATIONS: dict[str, Callable[[], T.Augmentation]] = {
    "brightness": lambda: T.RandomBrightness(0.9, 1.1),
    "contrast": lambda: T.RandomContrast(0.9, 1.1),
    "saturation": lambda: T.RandomSaturation(0.9, 1.1),
    "rotation": lambda: T.RandomRotation(
        [-15, 15], expand=False, center=[(0.4, 0.4), (0.6, 0.6)], sample_style="range"
    ),
}


def build_test_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Resize by the short side to INPUT.MIN_SIZE_TEST, nothing random."""
    return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]


def _flips(cfg: CfgNode) -> list[T.Augmentation]:
    # The original's `mask_former_*` mappers flip left-right whatever INPUT.RANDOM_FLIP says. Its published files for
    # pictures all leave the key at "horizontal", so reading it changes none of them and lets digits stay digits.
    known = ("none", "horizontal", "vertical")
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in known:
        raise ValueError(f"INPUT.RANDOM_FLIP={flip!r} is unknown; choose from {list(known)}")
    return [] if flip == "none" else [T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]


def _bgr_to_hsv(bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(bgr), cv2.COLOR_BGR2HSV), dtype=np.uint8)


def _hsv_to_bgr(hsv: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), dtype=np.uint8)


def _scale_and_add(image: NDArray[np.uint8], factor: float | None, summand: float) -> NDArray[np.uint8]:
    if (factor is None or factor == 1.0) and summand == 0.0:
        return image
    changed = image.astype(np.float32) * (1.0 if factor is None else factor) + summand
    return np.clip(changed, 0, 255).astype(np.uint8)
