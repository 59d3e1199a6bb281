"""Run lengths from tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mask2former.evaluation.run_lengths import encode_label_map, encode_masks, encode_packed, pack_rows
from mask2former.modeling.postprocessing import RunLengthMasks


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.uint8])
def test_masks_decode_to_what_was_encoded(dtype):
    masks = torch.rand(3, 7, 5, generator=torch.Generator().manual_seed(0)) > 0.6
    masks[1] = False
    found = encode_masks(masks.to(dtype))
    assert [rle["size"] for rle in found] == [[7, 5]] * 3
    assert all(isinstance(rle["counts"], str) for rle in found)
    assert np.array_equal(coco_mask.decode(found).transpose(2, 0, 1), masks.numpy())


def test_no_masks_give_no_run_lengths():
    assert encode_masks(torch.zeros(0, 7, 5, dtype=torch.bool)) == []


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_masks_without_pixels_have_run_lengths(size):
    assert encode_masks(torch.zeros(1, *size, dtype=torch.bool)) == [{"size": list(size), "counts": "0"}]


def test_masks_must_be_a_stack():
    with pytest.raises(ValueError, match=r"must be \(N, H, W\), got shape \(7, 5\)"):
        encode_masks(torch.zeros(7, 5, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_a_label_map_gives_one_mask_for_each_label_that_occurs(dtype):
    labels = np.random.default_rng(0).choice([0, 3, 200], (6, 9)).astype(dtype)
    found = encode_label_map(labels)
    assert list(found) == [0, 3, 200]
    for label, rle in found.items():
        assert np.array_equal(coco_mask.decode(rle), labels == label)


def test_run_lengths_of_the_model_stay_what_they_are():
    masks = torch.zeros(2, 7, 5, dtype=torch.bool)
    masks[1, 2:4, 3] = True
    rles = encode_masks(masks)
    assert encode_packed(pack_rows(RunLengthMasks(rles))) == rles == encode_masks(RunLengthMasks(rles))
