"""Predictions of several copies become one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mask2former.maskformer_model import ImagePrediction, MaskSizes
from mask2former.modeling.masks import MaskLogits
from mask2former.modeling.postprocessing import resized_to_output
from mask2former.test_time_augmentation.merging import MergedQueries, agreement

Q, K = 4, 3
SIZES = MaskSizes(padded=(32, 48), image=(32, 48), output=(20, 30))
PERMUTATION = torch.tensor([2, 0, 3, 1])
EVERY_QUERY = torch.arange(Q)


def _prediction(class_logits_QK: Tensor, mask_logits_Qhw: Tensor, sizes: MaskSizes = SIZES) -> ImagePrediction:
    """Any maps are a product: of themselves as features, and of unit vectors as embeddings."""
    masks = MaskLogits(torch.eye(len(mask_logits_Qhw))[None], mask_logits_Qhw[None, None])
    return ImagePrediction(class_logits_QK, masks, sizes)


def _quarters(height: int = 8, width: int = 12) -> Tensor:
    """Query 0 has the upper left quarter, 1 the upper right one, 2 the lower left one, 3 the lower right one."""
    masks_Qhw = torch.full((Q, height, width), -8.0)
    for query in range(Q):
        top, left = query // 2 * height // 2, query % 2 * width // 2
        masks_Qhw[query, top : top + height // 2, left : left + width // 2] = 8.0
    return masks_Qhw


def _output_masks(prediction: ImagePrediction | MergedQueries, queries: Tensor = EVERY_QUERY) -> Tensor:
    return resized_to_output(prediction.mask_logits(queries), prediction.sizes)


@pytest.fixture
def classes() -> Tensor:
    """One query of each class, and a second one of class 0."""
    return 6 * torch.eye(K + 1)[[0, 1, 2, 0]]


def test_the_reference_alone_stays_as_it_is(classes: Tensor) -> None:
    reference = _prediction(classes, _quarters())
    merged = MergedQueries(reference)
    assert torch.equal(merged.class_logits, classes)
    assert torch.equal(_output_masks(merged), _output_masks(reference))


def test_queries_of_another_order_are_matched_before_they_are_averaged(classes: Tensor) -> None:
    masks = _quarters()
    merged = MergedQueries(_prediction(classes, masks))
    merged.add(_prediction(2 * classes[PERMUTATION], 0.5 * masks[PERMUTATION]), is_mirrored=False)
    torch.testing.assert_close(merged.class_logits, 1.5 * classes)
    # The pairs agree in nearly all: their weights are nearly equal.
    expected = _output_masks(_prediction(classes, 0.75 * masks))
    torch.testing.assert_close(_output_masks(merged), expected, rtol=0.02, atol=0.0)


def test_a_mask_is_weighted_by_the_agreement_of_the_pair(classes: Tensor) -> None:
    masks, other = _quarters(), _quarters() - 3.0
    weight = agreement(classes.softmax(1), masks.flatten(1).sigmoid(), classes.softmax(1), other.flatten(1).sigmoid())
    merged = MergedQueries(_prediction(classes, masks, SIZES._replace(output=SIZES.padded)))
    merged.add(_prediction(classes, other, SIZES._replace(output=SIZES.padded)), is_mirrored=False)
    expected = masks[0, 0, 0] - 3 * weight[0, 0] / (1 + weight[0, 0])
    assert 0.5 < weight[0, 0] < 1
    torch.testing.assert_close(_output_masks(merged)[0, 0, 0], expected)


def test_what_a_copy_does_not_see_loses_score_but_keeps_its_mask(classes: Tensor) -> None:
    masks = _quarters()
    merged = MergedQueries(_prediction(classes, masks))
    nothing = 6 * torch.eye(K + 1)[K].repeat(Q, 1)
    merged.add(_prediction(nothing, -masks), is_mirrored=False)
    torch.testing.assert_close(merged.class_logits, (classes + nothing) / 2)
    alone = _output_masks(MergedQueries(_prediction(classes, masks)))
    torch.testing.assert_close(_output_masks(merged), alone, rtol=0.0, atol=0.02)


@pytest.mark.parametrize("reference_is_mirrored", [False, True])
def test_mirrored_masks_are_mirrored_back(classes: Tensor, reference_is_mirrored: bool) -> None:
    copies = [_prediction(classes, _quarters()), _prediction(classes[PERMUTATION], _quarters().flip(-1)[PERMUTATION])]
    first, second = copies[::-1] if reference_is_mirrored else copies
    merged = MergedQueries(first, is_mirrored=reference_is_mirrored)
    merged.add(second, is_mirrored=not reference_is_mirrored)
    order = PERMUTATION if reference_is_mirrored else EVERY_QUERY
    torch.testing.assert_close(merged.class_logits, classes[order])
    expected = _output_masks(copies[0], order)
    torch.testing.assert_close(_output_masks(merged), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("refinement", [1.0, 1.6])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_copies_of_other_sizes_and_paddings_lie_on_each_other(refinement: float, is_mirrored: bool) -> None:
    """A mask that grows evenly over the picture is sampled exactly, except next to the edge."""

    def slope(sizes: MaskSizes, is_mirrored: bool = False) -> ImagePrediction:
        rows = (torch.arange(sizes.padded[0] // 4) + 0.5) * 4 / sizes.image[0]
        columns = (torch.arange(sizes.padded[1] // 4) + 0.5) * 4 / sizes.image[1]
        columns = 1 - columns if is_mirrored else columns
        logits_1hw = (2 * columns - rows[:, None] + 1)[None]
        return _prediction(torch.tensor([[9.0, 0.0]]), logits_1hw, sizes)

    reference = MaskSizes(padded=(96, 128), image=(80, 120), output=(40, 60))
    copy = MaskSizes(padded=(128, 192), image=(128, 192), output=(40, 60))
    expected = _output_masks(slope(reference), torch.tensor([0]))
    merged = MergedQueries(slope(reference), refinement=refinement)
    merged.add(slope(copy, is_mirrored), is_mirrored=is_mirrored)
    found = _output_masks(merged, torch.tensor([0]))
    assert found.shape == (1, 40, 60)
    torch.testing.assert_close(found[:, 2:-2, 2:-2], expected[:, 2:-2, 2:-2], rtol=0.0, atol=1e-4)


def test_masks_reach_to_the_edge_of_a_finer_frame() -> None:
    everywhere = torch.full((1, 8, 12), 8.0)
    merged = MergedQueries(_prediction(torch.tensor([[9.0, 0.0]]), everywhere), refinement=1.6)
    merged.add(_prediction(torch.tensor([[9.0, 0.0]]), everywhere), is_mirrored=True)
    torch.testing.assert_close(_output_masks(merged, torch.tensor([0])), torch.full((1, *SIZES.output), 8.0))


@pytest.mark.parametrize("in_padding", [-8.0, 8.0])
def test_what_masks_say_about_padding_is_not_asked(classes: Tensor, in_padding: float) -> None:
    masks, sizes = _quarters(), SIZES._replace(padded=(64, 48))
    padded = torch.cat([masks, torch.full_like(masks, in_padding)], dim=1)
    merged = MergedQueries(_prediction(classes, padded, sizes))
    merged.add(_prediction(classes, 0.0 * masks), is_mirrored=False)
    weight = agreement(classes.softmax(1), masks.flatten(1).sigmoid(), classes.softmax(1), torch.full((Q, 96), 0.5))
    expected = masks[:, :1, :1] / (1 + weight.diagonal()[:, None, None])
    torch.testing.assert_close(_output_masks(merged)[:, :1, :1], expected)


def test_a_copy_of_numbers_that_are_none_is_left_out(classes: Tensor) -> None:
    reference = _prediction(classes, _quarters())
    merged = MergedQueries(reference)
    merged.add(_prediction(classes * float("nan"), _quarters()), is_mirrored=False)
    assert torch.equal(merged.class_logits, classes)
    assert torch.equal(_output_masks(merged), _output_masks(reference))


def test_no_object_and_disjoint_masks_agree_with_nothing(classes: Tensor) -> None:
    probabilities, masks = classes.softmax(1), _quarters().flatten(1).sigmoid()
    found = agreement(probabilities, masks, probabilities, masks)
    assert (found.diagonal() > 0.95).all()
    assert (found - found.diagonal().diag() < 0.01).all()  # queries 0 and 3 are of one class, but in other places
    nothing = torch.eye(K + 1)[K].repeat(Q, 1)
    assert torch.equal(agreement(probabilities, masks, nothing, masks), torch.zeros(Q, Q))
    empty = torch.zeros_like(masks)
    assert torch.equal(agreement(probabilities, empty, probabilities, empty), torch.zeros(Q, Q))
