"""From logits to results."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks
from torch import Tensor

from mask2former.modeling.postprocessing import (
    instance_inference,
    panoptic_candidates,
    panoptic_inference,
    semantic_inference,
    tight_boxes,
)
from tests.golden import deviation, golden, random_normal

COCO_THINGS = range(80)


@pytest.fixture(scope="module")
def published_inputs() -> tuple[Tensor, Tensor]:
    """What `golden.json` calls the inputs of `postprocess`: class logits (30, 134), mask logits (30, 48, 64)."""
    mask_logits = F.interpolate(4 * random_normal(32, 1, 30, 6, 8), (48, 64), mode="bilinear", align_corners=False)
    return 4 * random_normal(31, 30, 134), mask_logits[0]


def _blobs(num_queries: int, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Confident classes and masks with a few large overlapping regions, (Q, K + 1) and (Q, 24, 32)."""
    masks = F.interpolate(4 * random_normal(seed, 1, num_queries, 3, 4), (24, 32), mode="bilinear", align_corners=False)
    return 5 * random_normal(seed + 1, num_queries, num_classes + 1), masks[0]


def _areas(indices: Tensor) -> dict[str, int]:
    """How many pixels have each index."""
    return {str(index): count for index, count in enumerate(indices.flatten().bincount().tolist()) if count}


@pytest.mark.parametrize("case", range(4))
def test_panoptic_results_equal_the_original(case: int, published_inputs: tuple[Tensor, Tensor]) -> None:
    expected = golden()["postprocess"]["panoptic"][case]
    thresholds = {key: expected[key] for key in ("object_mask_threshold", "overlap_threshold")}
    segment_ids, segments_info = panoptic_inference(*published_inputs, thing_ids=COCO_THINGS, **thresholds)
    assert segments_info == expected["segments_info"]
    assert _areas(segment_ids) == expected["area_by_id"]
    assert segment_ids.dtype == torch.int32


def test_semantic_results_equal_the_original(published_inputs: tuple[Tensor, Tensor]) -> None:
    expected = golden()["postprocess"]["semantic"]
    scores = semantic_inference(*published_inputs)
    assert deviation(scores, expected) < 1e-5
    assert _areas(scores.argmax(dim=0)) == expected["argmax_hist"]


@pytest.mark.parametrize(("name", "thing_ids"), [("True", COCO_THINGS), ("False", None)])
def test_instance_results_equal_the_original(
    name: str, thing_ids: Any, published_inputs: tuple[Tensor, Tensor]
) -> None:
    expected = golden()["postprocess"][f"instance_panoptic_on_{name}"]
    instances = instance_inference(*published_inputs, topk=100, thing_ids=thing_ids)
    assert len(instances) == expected["num"]
    assert instances.image_size == (48, 64)
    assert instances.scores[:20].tolist() == pytest.approx(expected["scores_sorted_first20"], abs=1e-6)
    assert instances.pred_classes[:20].tolist() == expected["classes_in_that_order"]
    assert instances.pred_masks[:20].sum((1, 2)).tolist() == expected["mask_areas_in_that_order"]
    assert instances.scores.sum().item() == pytest.approx(expected["scores"]["sum"], rel=1e-6)


def _panoptic_by_the_rule(
    class_logits: Tensor,
    mask_logits: Tensor,
    thing_ids: set[int],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The rule query by query, as the specification words it."""
    scores, labels = class_logits.softmax(-1).max(-1)
    keep = [
        query
        for query in range(len(scores))
        if labels[query] != class_logits.shape[1] - 1 and scores[query] > object_mask_threshold
    ]
    segment_ids, segments_info = np.zeros(mask_logits.shape[1:], np.int32), []
    if not keep:
        return segment_ids, segments_info
    masks = mask_logits.sigmoid()
    owner = torch.stack([scores[query] * masks[query] for query in keep]).argmax(0)
    stuff_id: dict[int, int] = {}
    for place, query in enumerate(keep):
        label, won, inside = int(labels[query]), owner == place, masks[query] >= 0.5
        painted = won & inside
        if not (won.any() and inside.any() and painted.any()) or won.sum() / inside.sum() < overlap_threshold:
            continue
        if label in stuff_id:
            segment_ids[painted] = stuff_id[label]
            continue
        segments_info.append({"id": len(segments_info) + 1, "isthing": label in thing_ids, "category_id": label})
        segment_ids[painted] = len(segments_info)
        if label not in thing_ids:
            stuff_id[label] = len(segments_info)
    return segment_ids, segments_info


@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.5, 0.3), (0.8, 0.8), (1.0, 0.0)])
def test_panoptic_segments_follow_the_rule(thresholds: tuple[float, float]) -> None:
    names = ("object_mask_threshold", "overlap_threshold")
    merged = 0
    for seed in range(0, 40, 2):
        # Three classes for nine queries: stuff of one class meets itself often.
        class_logits, mask_logits = _blobs(9, 3, seed)
        settings = dict(zip(names, thresholds, strict=True))
        segment_ids, segments_info = panoptic_inference(class_logits, mask_logits, thing_ids=[0], **settings)
        expected_ids, expected_info = _panoptic_by_the_rule(class_logits, mask_logits, {0}, **settings)
        assert segments_info == expected_info
        assert np.array_equal(segment_ids.numpy(), expected_ids)
        stuff = [info["category_id"] for info in segments_info if not info["isthing"]]
        assert len(stuff) == len(set(stuff))
        merged += len(panoptic_candidates(class_logits, object_mask_threshold=thresholds[0]).queries) - len(
            segments_info
        )
    assert merged > 0 or thresholds[0] == 1.0


def test_dropping_queries_without_a_chance_beforehand_changes_nothing() -> None:
    class_logits, mask_logits = _blobs(12, 3, 3)
    settings = {"thing_ids": [0, 2], "object_mask_threshold": 0.6, "overlap_threshold": 0.2}
    candidates = panoptic_candidates(class_logits, object_mask_threshold=0.6).queries
    assert 0 < len(candidates) < 12
    segment_ids, segments_info = panoptic_inference(class_logits, mask_logits, **settings)
    again, info_again = panoptic_inference(class_logits[candidates], mask_logits[candidates], **settings)
    assert segments_info == info_again
    assert segments_info
    assert torch.equal(segment_ids, again)


def test_a_pixel_with_equal_claims_goes_to_the_first_query() -> None:
    class_logits = torch.tensor([[5.0, 0, 0], [5.0, 0, 0]])
    segment_ids, segments_info = panoptic_inference(
        class_logits, torch.ones(2, 2, 2), thing_ids=[0], object_mask_threshold=0.5, overlap_threshold=0.5
    )
    assert segments_info == [{"id": 1, "isthing": True, "category_id": 0}]
    assert segment_ids.eq(1).all()


def test_a_segment_tells_its_score_when_asked() -> None:
    class_logits = torch.tensor([[0.0, 0, 9], [0, 3.0, 0]])
    _, (info,) = panoptic_inference(
        class_logits,
        torch.ones(2, 2, 2),
        thing_ids=[0],
        object_mask_threshold=0.5,
        overlap_threshold=0.5,
        with_scores=True,
    )
    score = info.pop("score")
    assert info == {"id": 1, "isthing": False, "category_id": 1}
    assert score == pytest.approx(class_logits[1].softmax(0)[1].item())


def test_of_no_objects_no_segments_are_made() -> None:
    class_logits = torch.tensor([[0.0, 0, 9], [0, 0, 9]])
    segment_ids, segments_info = panoptic_inference(
        class_logits, torch.ones(2, 3, 4), thing_ids=[0], object_mask_threshold=0.0, overlap_threshold=0.0
    )
    assert segments_info == []
    assert segment_ids.shape == (3, 4)
    assert segment_ids.eq(0).all()


def test_semantic_scores_weigh_masks_by_class_probability() -> None:
    class_logits, mask_logits = _blobs(5, 3, 1)
    scores = semantic_inference(class_logits, mask_logits)
    assert scores.shape == (3, 24, 32)
    expected = sum(class_logits[query].softmax(0)[1] * mask_logits[query, 7, 9].sigmoid() for query in range(5))
    torch.testing.assert_close(scores[1, 7, 9], expected)


def test_instance_scores_are_class_probability_times_mask_quality() -> None:
    class_logits, mask_logits = _blobs(5, 3, 1)
    instances = instance_inference(class_logits, mask_logits, topk=4)
    probabilities = class_logits.softmax(-1)[:, :-1]
    assert (instances.scores.diff() <= 0).all()
    expected = {}
    for flat in probabilities.flatten().topk(4).indices.tolist():
        query, label = divmod(flat, 3)
        inside = mask_logits[query] > 0
        quality = mask_logits[query].sigmoid()[inside].mean()
        expected[round((probabilities[query, label] * quality).item(), 4)] = (label, inside)
    assert len(instances) == 4
    for score, label, mask in zip(instances.scores, instances.pred_classes, instances.pred_masks, strict=True):
        expected_label, expected_mask = expected[round(score.item(), 4)]
        assert label == expected_label
        assert torch.equal(mask, expected_mask)


def test_fewer_combinations_than_wanted_are_all_given() -> None:
    instances = instance_inference(*_blobs(2, 3, 1), topk=100)
    assert len(instances) == 6
    assert instances.pred_masks.dtype == torch.bool
    assert instances.pred_classes.dtype == torch.int64


def test_things_are_picked_after_the_best_combinations() -> None:
    class_logits = torch.tensor([[9.0, 0, 0], [0, 3.0, 0]])
    assert len(instance_inference(class_logits, torch.ones(2, 2, 2), topk=1, thing_ids=[1])) == 0
    (label,) = instance_inference(class_logits, torch.ones(2, 2, 2), topk=1, thing_ids=[0]).pred_classes
    assert label == 0


def test_boxes_are_tight() -> None:
    masks = torch.rand(6, 9, 7, generator=torch.Generator().manual_seed(0)) > 0.93
    masks[2] = False
    masks[3] = True
    assert torch.equal(tight_boxes(masks), BitMasks(masks).get_bounding_boxes().tensor)
    instances = instance_inference(*_blobs(3, 3, 1), topk=4)
    assert torch.equal(instances.pred_boxes.tensor, BitMasks(instances.pred_masks).get_bounding_boxes().tensor)
    assert tight_boxes(torch.zeros(0, 4, 4, dtype=torch.bool)).shape == (0, 4)


def test_an_empty_mask_has_score_zero() -> None:
    instances = instance_inference(torch.zeros(1, 2), torch.full((1, 3, 3), -4.0), topk=1)
    assert instances.scores.tolist() == [0]
    assert instances.pred_boxes.tensor.tolist() == [[0, 0, 0, 0]]


def test_logits_of_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of one image, got \(1, 4, 3\) and \(1, 4, 5, 6\)"):
        semantic_inference(torch.zeros(1, 4, 3), torch.zeros(1, 4, 5, 6))
    with pytest.raises(ValueError, match="of one image"):
        instance_inference(torch.zeros(3, 3), torch.zeros(4, 5, 6), topk=3)
