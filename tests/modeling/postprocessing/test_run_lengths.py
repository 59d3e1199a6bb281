"""Masks as run lengths, by way of one bit per pixel."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Instances
from torch import Tensor

from mask2former.data.masks import encode_rle
from mask2former.evaluation.run_lengths import encode_masks
from mask2former.modeling.postprocessing import RunLengthMasks
from mask2former.modeling.postprocessing.run_lengths import PackedMasks


def _masks(size: tuple[int, int]) -> Tensor:
    """Full, empty, single pixels in the corners, whole columns, a frame, noise."""
    height, width = size
    masks = torch.zeros(8, height, width, dtype=torch.bool)
    masks[0] = True
    masks[2, 0, 0] = True
    masks[3, -1, -1] = True
    masks[4, :, width // 3 : width // 2 + 1] = True
    masks[5] = True
    masks[5, 1:-1, 1:-1] = False
    masks[6] = torch.rand(size, generator=torch.Generator().manual_seed(0)) > 0.5
    masks[7, height // 2 :, width // 2 :] = True
    return masks


@pytest.mark.parametrize("rows_at_once", [1, 5, 100])
@pytest.mark.parametrize("size", [(13, 21), (16, 24), (1, 1), (1, 9), (9, 1), (7, 40)])
def test_packed_masks_are_encoded_as_pycocotools_does(size: tuple[int, int], rows_at_once: int) -> None:
    masks = _masks(size)
    packed = PackedMasks(len(masks), size, masks.device)
    for start in range(0, size[0], rows_at_once):
        rows = slice(start, min(start + rows_at_once, size[0]))
        packed.put(rows, masks[:, rows])
    found = packed.encode(packed.bits_MHB.numpy())
    assert found == [encode_rle(mask.numpy()) for mask in masks]
    assert torch.equal(RunLengthMasks(found).decode(size), masks)


def test_run_lengths_are_chosen_as_the_other_fields_of_instances_are() -> None:
    masks = _masks((9, 11))
    instances = Instances((9, 11))
    instances.pred_masks = RunLengthMasks(encode_masks(masks))
    instances.scores = torch.linspace(1, 0, 8)
    for item in (instances.scores > 0.5, torch.tensor([5, 2]), slice(1, 4), torch.zeros(8, dtype=torch.bool)):
        assert torch.equal(instances[item].pred_masks.decode((9, 11)), masks[item])
    assert torch.equal(instances[3].pred_masks.decode((9, 11)), masks[3:4])
    assert instances.pred_masks[3] == encode_masks(masks)[3] == list(instances.pred_masks)[3]


def test_run_lengths_are_already_what_evaluators_want() -> None:
    rles = encode_masks(_masks((9, 11)))
    assert encode_masks(RunLengthMasks(rles)) == rles
