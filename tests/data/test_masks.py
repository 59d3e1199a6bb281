"""Polygons, run lengths and id pictures."""

import numpy as np
import pytest
import torch

from mask2former.data.masks import (
    decode_segmentations,
    encode_rle,
    id_to_rgb,
    ids_to_masks,
    mask_to_polygon,
    rgb_to_id,
    tight_boxes,
)

SIZE = (24, 32)


def random_blob(seed: int, *, connected: bool) -> np.ndarray:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    mask = np.hypot(y - random.uniform(6, 18), x - random.uniform(8, 24)) < random.uniform(3, 9)
    return mask if connected else mask ^ (random.uniform(size=SIZE) < 0.05)


def test_ids_survive_the_way_through_a_png() -> None:
    ids = np.array([[0, 1, 255], [256, 65535, 2**24 - 1]], dtype=np.int32)
    assert np.array_equal(rgb_to_id(id_to_rgb(ids)), ids)


def test_the_channels_count_red_first() -> None:
    assert rgb_to_id(np.array([[[3, 2, 1]]], dtype=np.uint8)).item() == 3 + 2 * 256 + 1 * 65536


def test_a_gray_panoptic_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) RGB, got shape \(4, 5\)"):
        rgb_to_id(np.zeros((4, 5), dtype=np.uint8))


def test_each_id_gets_its_mask_in_the_order_asked_for() -> None:
    ids = np.array([[7, 7, 0], [9, 0, 7]], dtype=np.int32)
    masks = ids_to_masks(ids, [9, 7, 5])
    assert masks.dtype == torch.bool
    assert masks.tolist() == [
        [[False, False, False], [True, False, False]],
        [[True, True, False], [False, False, True]],
        [[False] * 3] * 2,
    ]


def test_no_ids_give_no_masks_of_the_same_size() -> None:
    assert ids_to_masks(np.zeros((4, 5), dtype=np.int32), []).shape == (0, 4, 5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("as_list", [False, True])
def test_run_lengths_are_lossless(seed, as_list) -> None:
    mask = random_blob(seed, connected=False)
    rle = encode_rle(mask)
    assert isinstance(rle["counts"], str) and rle["size"] == list(SIZE)
    if as_list:  # the uncompressed form of COCO's crowds: lengths of runs, columns first, beginning with zeros
        changes = np.flatnonzero(np.diff(np.concatenate([[False], mask.ravel(order="F"), [True]])))
        ends = np.concatenate([[0], changes, [mask.size]])
        rle = {"size": list(SIZE), "counts": np.diff(ends).tolist()}
    assert np.array_equal(decode_segmentations([rle], SIZE)[0], mask)


@pytest.mark.parametrize("seed", range(8))
def test_the_outline_of_a_mask_rasterizes_back_exactly(seed) -> None:
    mask = random_blob(seed, connected=True)
    polygon = mask_to_polygon(mask)
    assert polygon is not None
    assert np.array_equal(decode_segmentations([[polygon]], SIZE)[0], mask)


def test_an_outline_at_the_border_of_the_picture_rasterizes_back_exactly() -> None:
    mask = np.ones(SIZE, dtype=bool)
    assert mask_to_polygon(mask) is not None and len(mask_to_polygon(mask)) == 8
    assert np.array_equal(decode_segmentations([[mask_to_polygon(mask)]], SIZE)[0], mask)


@pytest.mark.parametrize("kind", ["empty", "two parts", "hole", "touching corners"])
def test_what_one_outline_cannot_describe_has_no_polygon(kind) -> None:
    mask = np.zeros(SIZE, dtype=bool)
    if kind != "empty":
        mask[2:8, 2:8] = True
    if kind == "two parts":
        mask[12:14, 2:8] = True
    if kind == "hole":
        mask[4, 4] = False
    if kind == "touching corners":
        mask[8:10, 8:10] = True
    assert mask_to_polygon(mask) is None


def test_the_polygons_of_one_annotation_are_united() -> None:
    left, right = [2, 2, 6, 2, 6, 6, 2, 6], [10, 2, 14, 2, 14, 6, 10, 6]
    (mask,) = decode_segmentations([[left, right]], SIZE)
    assert mask.sum() == 32 and mask[3, 3] and mask[3, 12] and not mask[3, 8]


def test_a_polygon_outside_the_picture_gives_an_empty_mask() -> None:
    outside, none = [[40, 2, 46, 2, 46, 6, 40, 6]], []
    masks = decode_segmentations([outside, none], SIZE)
    assert masks.shape == (2, *SIZE) and not masks.any()


def test_a_polygon_that_reaches_out_of_the_picture_is_cut_at_its_border() -> None:
    (mask,) = decode_segmentations([[[-5, -3, 4, -3, 4, 5, -5, 5]]], SIZE)
    expected = np.zeros(SIZE, dtype=bool)
    expected[:5, :4] = True
    assert np.array_equal(mask, expected)


def test_no_annotations_give_no_masks() -> None:
    assert decode_segmentations([], SIZE).shape == (0, *SIZE)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "at least three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least three points"),
        ({"size": [5, 5], "counts": [25]}, r"RLE of \(height, width\) \(5, 5\) for a picture of \(24, 32\)"),
        ("polygon", "must be polygons or RLE, got str"),
    ],
)
def test_a_broken_segmentation_is_refused(segmentation, message) -> None:
    with pytest.raises(ValueError, match=message):
        decode_segmentations([segmentation], SIZE)


def test_boxes_are_tight_and_zero_for_empty_masks() -> None:
    masks = torch.zeros(2, 10, 12, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    assert tight_boxes(masks).tolist() == [[3, 2, 9, 5], [0, 0, 0, 0]]
    assert tight_boxes(masks[:0]).shape == (0, 4)
