"""Random changes of training pictures: what is drawn, and that drawing and applying are apart."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from detectron2.projects.point_rend import color_augmentation

from mask2former.config import load_config
from mask2former.data.augmentation import (
    ColorJitter,
    ColorJitterTransform,
    FixedSizeCrop,
    RandomColorJitter,
    build_large_scale_jitter,
    build_short_side_augmentations,
    build_test_augmentations,
)

CONFIG = "configs/digits/panoptic.yaml"
UNCHANGED = ColorJitter(brightness=None, contrast=None, saturation=None, hue=None, contrast_first=True)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def names(augmentations: list) -> list[str]:
    return [type(augmentation).__name__ for augmentation in augmentations]


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_no_step_drawn_leaves_the_picture_as_it_is(image_format) -> None:
    image = picture(8, 9)
    assert np.array_equal(ColorJitterTransform(UNCHANGED, image_format).apply_image(image), image)


def test_brightness_is_added_clipped_and_cut_off() -> None:
    image = np.array([[[0, 100, 250]]], dtype=np.uint8)
    changed = ColorJitterTransform(UNCHANGED._replace(brightness=10.7), "RGB").apply_image(image)
    assert changed.tolist() == [[[10, 110, 255]]]
    darker = ColorJitterTransform(UNCHANGED._replace(brightness=-20.0), "RGB").apply_image(image)
    assert darker.tolist() == [[[0, 80, 230]]]


@pytest.mark.parametrize("contrast_first", [True, False])
def test_contrast_multiplies(contrast_first) -> None:
    jitter = UNCHANGED._replace(contrast=1.5, contrast_first=contrast_first)
    changed = ColorJitterTransform(jitter, "RGB").apply_image(np.array([[[0, 101, 250]]], dtype=np.uint8))
    assert changed.tolist() == [[[0, 151, 255]]]


def test_hue_turns_red_into_green_in_both_channel_orders() -> None:
    # 60 steps of 2 degrees: further than the augmentation ever goes, but easy to check.
    jitter = UNCHANGED._replace(hue=60)
    red_rgb, red_bgr = np.array([[[255, 0, 0]]], dtype=np.uint8), np.array([[[0, 0, 255]]], dtype=np.uint8)
    assert ColorJitterTransform(jitter, "RGB").apply_image(red_rgb).tolist() == [[[0, 255, 0]]]
    assert ColorJitterTransform(jitter, "BGR").apply_image(red_bgr).tolist() == [[[0, 255, 0]]]


def test_saturation_zero_gives_gray() -> None:
    changed = ColorJitterTransform(UNCHANGED._replace(saturation=0.0), "RGB").apply_image(picture(4, 4))
    assert np.all(changed == changed[..., :1])


def test_a_drawn_jitter_treats_every_frame_alike() -> None:
    np.random.seed(3)
    image = picture(8, 9)
    transform = RandomColorJitter("RGB").get_transform(image)
    assert np.array_equal(transform.apply_image(image), transform.apply_image(image.copy()))


def test_jitter_values_stay_in_their_ranges_and_each_step_is_drawn_half_of_the_time() -> None:
    np.random.seed(0)
    drawn = [RandomColorJitter("RGB").get_transform(picture(2, 2)).jitter for _ in range(1000)]
    ranges = {"brightness": (-32, 32), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-18, 18)}
    for step, (low, high) in ranges.items():
        values = [getattr(jitter, step) for jitter in drawn if getattr(jitter, step) is not None]
        assert 430 < len(values) < 570
        assert low <= min(values) < low + 0.1 * (high - low) and high - 0.1 * (high - low) < max(values) <= high
    assert 430 < sum(jitter.contrast_first for jitter in drawn) < 570


@pytest.mark.parametrize("contrast_first", [True, False])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_a_jitter_equals_that_of_published_training(monkeypatch, image_format, contrast_first) -> None:
    """Detectron2's color augmentation draws inside `apply_image`; here it is made to draw the values of our jitter."""
    jitter = ColorJitter(-17.3, 1.31, 0.62, -11, contrast_first)

    class Drawn:
        steps = iter([1, int(contrast_first), 1, 1, 1])
        factors = iter([jitter.contrast, jitter.saturation] if contrast_first else [jitter.saturation, jitter.contrast])

        def randrange(self, stop: int) -> int:
            return next(self.steps)

        def uniform(self, low: float, high: float) -> float:
            return jitter.brightness if low < 0 else next(self.factors)

        def randint(self, low: int, high: int) -> int:
            return jitter.hue

    monkeypatch.setattr(color_augmentation, "random", Drawn())
    image = picture(16, 18)
    published = color_augmentation.ColorAugSSDTransform(img_format=image_format).apply_image(image)
    assert np.array_equal(ColorJitterTransform(jitter, image_format).apply_image(image), published)


def test_labels_and_positions_ignore_the_jitter() -> None:
    transform = RandomColorJitter("RGB").get_transform(picture(2, 2))
    labels, points = picture(4, 4)[..., 0], np.array([[1.0, 2.0]])
    assert np.array_equal(transform.apply_segmentation(labels), labels)
    assert np.array_equal(transform.apply_coords(points), points)


def test_an_unknown_channel_order_has_no_jitter() -> None:
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT='L' has no color jitter"):
        RandomColorJitter("L")


def test_a_small_picture_is_padded_with_gray_and_its_labels_with_zero() -> None:
    image, labels = picture(5, 7), np.full((5, 7), 9, dtype=np.uint8)
    transform = FixedSizeCrop((8, 8)).get_transform(image)
    padded, padded_labels = transform.apply_image(image), transform.apply_segmentation(labels)
    assert padded.shape == (8, 8, 3) and np.array_equal(padded[:5, :7], image)
    assert np.all(padded[5:] == 128) and np.all(padded[:, 7:] == 128)
    assert np.all(padded_labels[:5, :7] == 9) and padded_labels.sum() == 9 * 35


def test_a_large_picture_is_cut_on_its_diagonal() -> None:
    np.random.seed(0)
    y, x = np.mgrid[:20, :28]
    positions = np.stack([y, x, y], axis=-1).astype(np.uint8)
    corners = []
    for _ in range(200):
        cut = FixedSizeCrop((8, 8)).get_transform(positions).apply_image(positions)
        assert cut.shape == (8, 8, 3)
        corners.append((cut[0, 0, 0], cut[0, 0, 1]))
    tops, lefts = (np.array(values, dtype=float) for values in zip(*corners, strict=True))
    # One random number for both axes: the share of the way is the same, up to rounding.
    assert np.abs(tops / 12 - lefts / 20).max() < 0.5 / 12 + 0.5 / 20 + 1e-6
    assert (tops.min(), tops.max(), lefts.min(), lefts.max()) == (0, 12, 0, 20)


@pytest.mark.parametrize("size", [(5, 7), (20, 28), (4, 20), (30, 6)])
def test_a_window_equals_that_of_published_training(size) -> None:
    image = picture(*size)
    windows = []
    for crop in (T.FixedSizeCrop((8, 8)), FixedSizeCrop((8, 8))):
        np.random.seed(7)
        windows.append(crop.get_transform(image).apply_image(image))
    assert np.array_equal(*windows)


def test_a_picture_that_is_only_too_wide_is_cut_and_padded() -> None:
    image = picture(4, 20)
    transform = FixedSizeCrop((8, 8)).get_transform(image)
    result = transform.apply_image(image)
    assert result.shape == (8, 8, 3) and np.all(result[4:] == 128)


def test_the_short_side_list_has_the_published_order() -> None:
    cfg = load_config(CONFIG, ["INPUT.COLOR_AUG_SSD", "True", "INPUT.RANDOM_FLIP", "horizontal"])
    expected = ["ResizeShortestEdge", "RandomCrop_CategoryAreaConstraint", "RandomColorJitter", "RandomFlip"]
    assert names(build_short_side_augmentations(cfg, limits_one_class=True)) == expected
    expected[1] = "RandomCrop"
    assert names(build_short_side_augmentations(cfg, limits_one_class=False)) == expected


def test_crop_jitter_and_flip_are_optional() -> None:
    cfg = load_config(CONFIG, ["INPUT.CROP.ENABLED", "False", "INPUT.RANDOM_FLIP", "none"])
    assert names(build_short_side_augmentations(cfg, limits_one_class=True)) == ["ResizeShortestEdge"]


def test_large_scale_jitter_flips_scales_and_cuts() -> None:
    cfg = load_config(CONFIG, ["INPUT.RANDOM_FLIP", "vertical", "INPUT.IMAGE_SIZE", "64"])
    augmentations = build_large_scale_jitter(cfg)
    assert names(augmentations) == ["RandomFlip", "ResizeScale", "FixedSizeCrop"]
    assert augmentations[0].vertical and not augmentations[0].horizontal


@pytest.mark.parametrize("size", [(30, 50), (200, 90)])
def test_large_scale_jitter_always_gives_the_same_square(size) -> None:
    np.random.seed(0)
    augmentations = T.AugmentationList(build_large_scale_jitter(load_config(CONFIG, ["INPUT.IMAGE_SIZE", "64"])))
    for _ in range(10):
        augmented = T.AugInput(picture(*size))
        augmentations(augmented)
        assert augmented.image.shape == (64, 64, 3)


def test_an_unknown_flip_is_told_the_known_ones() -> None:
    cfg = load_config(CONFIG, ["INPUT.RANDOM_FLIP", "sideways"])
    with pytest.raises(ValueError, match=r"INPUT\.RANDOM_FLIP='sideways' is unknown; choose from \['none', "):
        build_large_scale_jitter(cfg)


def test_testing_resizes_by_the_short_side() -> None:
    cfg = load_config(CONFIG, ["INPUT.MIN_SIZE_TEST", "40", "INPUT.MAX_SIZE_TEST", "60"])
    augmented = T.AugInput(picture(20, 25))
    T.AugmentationList(build_test_augmentations(cfg))(augmented)
    assert augmented.image.shape == (40, 50, 3)
