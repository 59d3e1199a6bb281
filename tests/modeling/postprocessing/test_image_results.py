"""All results of an image from blocks of rows equal the rules on whole masks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.postprocessing import (
    MaskSizes,
    ResultSettings,
    RunLengthMasks,
    image_results,
    instance_inference,
    panoptic_inference,
    resized_to_output,
    semantic_inference,
)
from mask2former.modeling.postprocessing.resizing import RowStream
from tests.golden import random_normal

Q, K = 9, 4
THINGS = (0, 2)
SETTINGS = ResultSettings(
    semantic_output="scores",
    instance_output="masks",
    panoptic_on=True,
    resize_first=True,
    thing_ids=THINGS,
    object_mask_threshold=0.5,
    overlap_threshold=0.3,
    topk=12,
    memory_budget=2**30,
)
SIZES = {
    "padded": MaskSizes((32, 48), (29, 41), (23, 57)),
    "as it is": MaskSizes((32, 48), (32, 48), (32, 48)),
    "smaller": MaskSizes((32, 48), (30, 48), (6, 5)),
    "one pixel": MaskSizes((32, 48), (1, 1), (1, 1)),
}
ONE_ROW = 1  # byte: a block has at least one row


def _prediction(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Confident classes and masks with a few large overlapping regions: (Q, K + 1) and (Q, 8, 12)."""
    masks = F.interpolate(6 * random_normal(seed, 1, Q, 3, 4), (8, 12), mode="bilinear", align_corners=False)[0]
    return 5 * random_normal(seed + 1, Q, K + 1), masks


def _results(settings: ResultSettings, sizes: MaskSizes, seed: int = 0) -> dict[str, Any]:
    class_logits, masks = _prediction(seed)
    return image_results(class_logits, lambda queries: masks[queries], sizes, settings)


def _expected(settings: ResultSettings, sizes: MaskSizes, seed: int = 0) -> dict[str, Any]:
    class_logits, masks = _prediction(seed)
    logits = resized_to_output(masks, sizes)
    thresholds = {name: getattr(settings, name) for name in ("object_mask_threshold", "overlap_threshold")}
    return {
        "sem_seg": semantic_inference(class_logits, logits),
        "panoptic_seg": panoptic_inference(class_logits, logits, thing_ids=THINGS, with_scores=True, **thresholds),
        "instances": instance_inference(class_logits, logits, topk=settings.topk, thing_ids=THINGS),
    }


def _assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Maps and masks equal, numbers up to rounding."""
    assert found.keys() == expected.keys()
    if "sem_seg" in expected:
        torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], rtol=1e-5, atol=1e-5)
    if "panoptic_seg" in expected:
        assert torch.equal(found["panoptic_seg"][0], expected["panoptic_seg"][0])
        assert found["panoptic_seg"][1] == expected["panoptic_seg"][1]
    if "instances" in expected:
        mine, theirs = found["instances"], expected["instances"]
        torch.testing.assert_close(mine.scores, theirs.scores)
        assert torch.equal(mine.pred_masks, theirs.pred_masks)
        assert torch.equal(mine.pred_boxes.tensor, theirs.pred_boxes.tensor)
        assert torch.equal(mine.pred_classes, theirs.pred_classes)


@pytest.mark.parametrize("budget", [ONE_ROW, 20_000, 60_000, 2**30])
@pytest.mark.parametrize("case", SIZES)
def test_blocks_of_any_height_give_what_whole_masks_give(case: str, budget: int) -> None:
    expected = _expected(SETTINGS, SIZES[case])
    _assert_equal(_results(replace(SETTINGS, memory_budget=budget), SIZES[case]), expected)
    if case in ("padded", "as it is"):
        assert len(expected["panoptic_seg"][1]) > 1 and len(expected["instances"]) > 3


@pytest.mark.parametrize("topk", [3, 12])
def test_of_every_segment_is_told_which_query_it_came_from(topk: int) -> None:
    class_logits, masks = _prediction()
    sizes, settings = SIZES["padded"], replace(SETTINGS, topk=topk, semantic_output=None)
    results = image_results(class_logits, lambda queries: masks[queries], sizes, settings, with_queries=True)
    probabilities = class_logits.softmax(-1)
    infos, queries = results["panoptic_seg"][1], results["panoptic_queries"].tolist()
    assert [info["score"] for info in infos] == [float(probabilities[query].max()) for query in queries]
    assert len(set(queries)) == len(infos) > 1

    instances, queries = results["instances"], results["instance_queries"]
    inside = resized_to_output(masks[queries], sizes) > 0
    assert torch.equal(instances.pred_masks, inside)
    class_logits[:, -1] = 99
    nothing = image_results(class_logits, lambda queries: masks[queries], sizes, settings, with_queries=True)
    assert nothing["panoptic_queries"].tolist() == []
    assert results.keys() - _results(settings, sizes).keys() == {"panoptic_queries", "instance_queries"}


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_threads_change_nothing_at_all(num_threads: int) -> None:
    settings = replace(SETTINGS, memory_budget=ONE_ROW)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = _results(settings, SIZES["padded"])
        torch.set_num_threads(num_threads)
        found = _results(settings, SIZES["padded"])
    finally:
        torch.set_num_threads(before)
    _assert_equal(found, expected)
    assert torch.equal(found["instances"].scores, expected["instances"].scores)


@pytest.mark.parametrize("name", ["sem_seg", "panoptic_seg", "instances"])
def test_each_result_is_the_same_alone(name: str) -> None:
    settings = replace(
        SETTINGS,
        semantic_output="scores" if name == "sem_seg" else None,
        panoptic_on=name == "panoptic_seg",
        instance_output="masks" if name == "instances" else None,
        memory_budget=20_000,
    )
    expected = _expected(SETTINGS, SIZES["padded"])
    _assert_equal(_results(settings, SIZES["padded"]), {name: expected[name]})


def test_stuff_counts_as_instances_where_no_class_is_known_to_be_a_thing() -> None:
    settings = replace(SETTINGS, semantic_output=None, panoptic_on=False, thing_ids=None)
    class_logits, masks = _prediction()
    logits = resized_to_output(masks, SIZES["padded"])
    expected = instance_inference(class_logits, logits, topk=settings.topk)
    _assert_equal(_results(settings, SIZES["padded"]), {"instances": expected})


def test_a_budget_decides_how_many_rows_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    rows = RowStream.rows
    monkeypatch.setattr(RowStream, "rows", lambda *arguments: seen.append(arguments[1:]) or rows(*arguments))
    _results(replace(SETTINGS, memory_budget=ONE_ROW), SIZES["padded"])
    assert sorted(seen) == [(row, row + 1) for row in range(23)]
    seen.clear()
    _results(SETTINGS, SIZES["padded"])
    assert seen == [(0, 23)]


@pytest.mark.parametrize("budget", [ONE_ROW, 2**30])
def test_a_map_merged_first_is_resized_as_a_whole(budget: int) -> None:
    sizes = SIZES["padded"]
    class_logits, masks = _prediction()
    merged = semantic_inference(class_logits, resized_to_output(masks, sizes._replace(output=sizes.image)))
    expected = F.interpolate(merged[None], size=sizes.output, mode="bilinear", align_corners=False)[0]
    settings = replace(SETTINGS, instance_output=None, panoptic_on=False, resize_first=False, memory_budget=budget)
    torch.testing.assert_close(_results(settings, sizes)["sem_seg"], expected)


@pytest.mark.parametrize("budget", [ONE_ROW, 20_000, 2**30])
@pytest.mark.parametrize("semantic_output", ["scores", None])
def test_run_lengths_are_those_of_the_masks(semantic_output: str | None, budget: int) -> None:
    settings = replace(SETTINGS, semantic_output=semantic_output, memory_budget=budget)
    expected = _results(settings, SIZES["padded"])["instances"]
    found = _results(replace(settings, instance_output="run_lengths"), SIZES["padded"])["instances"]
    assert isinstance(found.pred_masks, RunLengthMasks)
    assert torch.equal(found.pred_masks.decode((23, 57)), expected.pred_masks)
    for field in ("scores", "pred_classes"):
        assert torch.equal(found.get(field), expected.get(field))
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


@pytest.mark.parametrize("instance_output", ["masks", "run_lengths"])
@pytest.mark.parametrize("semantic_output", ["scores", None])
def test_nothing_found_is_nothing_given(semantic_output: str | None, instance_output: str) -> None:
    settings = replace(
        SETTINGS,
        semantic_output=semantic_output,
        instance_output=instance_output,
        object_mask_threshold=1.0,
        topk=0,
    )
    results = _results(settings, SIZES["padded"])
    segment_ids, segments_info = results["panoptic_seg"]
    assert segments_info == [] and segment_ids.shape == (23, 57) and not segment_ids.any()
    masks = results["instances"].pred_masks
    assert len(results["instances"]) == 0
    assert (masks if instance_output == "masks" else masks.decode((23, 57))).shape == (0, 23, 57)


@pytest.mark.parametrize("budget", [ONE_ROW, 20_000, 2**30])
@pytest.mark.parametrize("resize_first", [True, False])
def test_labels_are_the_best_scores_and_their_shares(resize_first: bool, budget: int) -> None:
    settings = replace(SETTINGS, instance_output=None, panoptic_on=False, resize_first=resize_first)
    scores = _results(settings, SIZES["padded"])["sem_seg"]
    found = _results(replace(settings, semantic_output="labels", memory_budget=budget), SIZES["padded"])
    assert list(found) == ["sem_seg", "sem_seg_confidence"]
    assert found["sem_seg"].dtype == torch.int32
    assert torch.equal(found["sem_seg"].long(), scores.argmax(dim=0))
    torch.testing.assert_close(found["sem_seg_confidence"], scores.amax(dim=0) / scores.sum(dim=0))


@pytest.mark.parametrize("budget", [ONE_ROW, 20_000, 2**30])
@pytest.mark.parametrize("resize_first", [True, False])
def test_probabilities_are_shares_of_the_scores_with_their_entropy(resize_first: bool, budget: int) -> None:
    settings = replace(SETTINGS, instance_output=None, panoptic_on=False, resize_first=resize_first)
    scores = _results(settings, SIZES["padded"])["sem_seg"]
    found = _results(replace(settings, semantic_output="probabilities", memory_budget=budget), SIZES["padded"])
    assert list(found) == ["sem_seg", "sem_seg_entropy"]
    torch.testing.assert_close(found["sem_seg"].sum(dim=0), torch.ones(23, 57))
    torch.testing.assert_close(found["sem_seg"], scores / scores.sum(dim=0))
    expected = torch.distributions.Categorical(probs=found["sem_seg"].permute(1, 2, 0)).entropy()
    torch.testing.assert_close(found["sem_seg_entropy"], expected)


def test_a_pixel_that_no_mask_claims_may_be_of_any_class() -> None:
    class_logits, masks = _prediction()
    nowhere = torch.full_like(masks, -1e4)  # so far outside that every probability is 0
    for name in ("labels", "probabilities"):
        settings = replace(SETTINGS, semantic_output=name)
        results = image_results(class_logits, lambda queries: nowhere[queries], SIZES["padded"], settings)
        if name == "labels":
            torch.testing.assert_close(results["sem_seg_confidence"], torch.full((23, 57), 1 / K))
        else:
            torch.testing.assert_close(results["sem_seg"], torch.full((K, 23, 57), 1 / K))
            torch.testing.assert_close(results["sem_seg_entropy"], torch.full((23, 57), math.log(K)))
