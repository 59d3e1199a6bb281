"""Masks at one bit per pixel."""

import pickle

import pytest
import torch
from detectron2.structures import Instances

from mask2former.packed_masks import PackedMasks, unpacked, unpacked_by_tensors


def random_masks(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5


@pytest.mark.parametrize("shape", [(3, 5, 16), (2, 4, 13), (2, 3, 4, 7), (0, 4, 9), (1, 1, 1)])
def test_masks_survive_packing(shape) -> None:
    masks = random_masks(*shape)
    packed = PackedMasks.pack(masks)
    assert packed.shape == masks.shape and len(packed) == len(masks)
    assert packed.bits.numel() == masks[..., 0].numel() * -(-shape[-1] // 8)
    assert packed.unpack().dtype == torch.bool and torch.equal(packed.unpack(), masks)


@pytest.mark.parametrize("width", [1, 8, 13])
def test_every_device_unpacks_the_same(width) -> None:
    masks = random_masks(3, 4, width)
    assert torch.equal(unpacked_by_tensors(PackedMasks.pack(masks).bits, width), masks)


def test_masks_in_another_order_of_memory_are_packed_as_they_look() -> None:
    masks = random_masks(9, 5, 3).permute(2, 1, 0)
    assert torch.equal(PackedMasks.pack(masks).unpack(), masks)


def test_packed_masks_are_a_field_of_instances() -> None:
    masks = random_masks(3, 4, 9)
    instances = Instances((4, 9), gt_masks=PackedMasks.pack(masks))
    assert torch.equal(instances[torch.tensor([2, 0])].gt_masks.unpack(), masks[[2, 0]])
    assert torch.equal(instances[masks[:, 0, 0]].gt_masks.unpack(), masks[masks[:, 0, 0]])
    assert torch.equal(instances.to("cpu").gt_masks.unpack(), masks)
    assert torch.equal(pickle.loads(pickle.dumps(instances)).gt_masks.unpack(), masks)


def test_what_is_not_packed_is_not_unpacked() -> None:
    masks = random_masks(2, 3, 4)
    assert unpacked(masks) is masks
    assert torch.equal(unpacked(PackedMasks.pack(masks)), masks)


@pytest.mark.parametrize("masks", [torch.zeros(2, 3, 4), torch.zeros(3, 4, dtype=torch.bool)])
def test_only_bool_masks_can_be_packed(masks) -> None:
    with pytest.raises(ValueError, match=r"must be \(N, \.\.\., h, w\) bool, got"):
        PackedMasks.pack(masks)
