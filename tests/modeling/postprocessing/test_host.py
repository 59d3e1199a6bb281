"""On a device that must not be waited for, results are the same and the host hears of them once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.modeling.masks import MaskLogits
from mask2former.modeling.postprocessing import (
    MaskSizes,
    ResultSettings,
    host,
    image_results,
    instances,
    video_inference,
)
from mask2former.modeling.postprocessing.host import chosen_first, different, is_among, to_host
from mask2former.modeling.postprocessing.resizing import Axis
from tests.golden import random_normal
from tests.host_copies import HostCopies

Q, K = 9, 4
SIZES = MaskSizes((32, 48), (29, 41), (23, 57))
ALL = ResultSettings(
    semantic_output="scores",
    instance_output="masks",
    panoptic_on=True,
    resize_first=True,
    thing_ids=(0, 2),
    object_mask_threshold=0.5,
    overlap_threshold=0.3,
    topk=12,
    memory_budget=20_000,
)
CASES = {
    "all": ALL,
    "labels": replace(ALL, semantic_output="labels"),
    "panoptic": replace(ALL, semantic_output=None, instance_output=None),
    "instances": replace(ALL, semantic_output=None, panoptic_on=False),
    "few instances": replace(ALL, semantic_output=None, topk=5),
    "run lengths": replace(ALL, instance_output="run_lengths"),
    "semantic": replace(ALL, instance_output=None, panoptic_on=False),
    "merged, then resized": replace(ALL, instance_output=None, panoptic_on=False, resize_first=False),
}


_axis = cache(Axis.of)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU is a device whose tensors the host does not know, and that has no threads."""
    for module in (host, instances):
        monkeypatch.setattr(module, "knows_values", lambda device: False)
    # Tables of sizes are made on the CPU, whatever the device: they were there before.
    monkeypatch.setattr(Axis, "of", staticmethod(_axis))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _prediction(seed: int) -> tuple[Tensor, Tensor]:
    """Confident classes and masks with a few large overlapping regions: (Q, K + 1) and (Q, 8, 12)."""
    masks = F.interpolate(6 * random_normal(seed, 1, Q, 3, 4), (8, 12), mode="bilinear", align_corners=False)[0]
    return 5 * random_normal(seed + 1, Q, K + 1), masks


def _results(settings: ResultSettings, class_logits: Tensor, masks: Tensor) -> dict[str, Any]:
    return image_results(class_logits, lambda queries: masks[queries], SIZES, settings, with_queries=True)


@pytest.fixture
def expected(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Made before `waits` takes effect; the last one finds nothing."""
    predictions = [_prediction(seed) for seed in (0, 2, 4)]
    predictions[-1][0][:, -1] = 99
    return [_results(CASES[request.param], *prediction) for prediction in predictions]


@pytest.mark.parametrize(("expected", "case"), [(case, case) for case in CASES], indirect=["expected"])
def test_results_are_those_of_known_values_and_reach_the_host_in_one_copy(
    expected: list[dict[str, Any]], case: str, waits: None
) -> None:
    for seed, results in zip((0, 2, 4), expected, strict=True):
        class_logits, masks = _prediction(seed)
        if seed == 4:
            class_logits[:, -1] = 99
        _results(CASES[case], class_logits, masks)
        with HostCopies() as copies:
            found = _results(CASES[case], class_logits, masks)
        assert copies == ([] if "instances" not in results and "panoptic_seg" not in results else ["cpu"])
        assert found.keys() == results.keys()
        for name in found.keys() - {"panoptic_seg", "instances"}:
            torch.testing.assert_close(found[name], results[name])
        if "panoptic_seg" in found:
            assert torch.equal(found["panoptic_seg"][0], results["panoptic_seg"][0])
            assert found["panoptic_seg"][1] == results["panoptic_seg"][1]
            assert (len(results["panoptic_seg"][1]) > 0) == (seed != 4)
        if "instances" in found:
            _assert_same_instances(found["instances"].get_fields(), results["instances"].get_fields())


def _assert_same_instances(found: dict[str, Any], expected: dict[str, Any]) -> None:
    torch.testing.assert_close(found["scores"], expected["scores"])
    assert torch.equal(found["pred_classes"], expected["pred_classes"])
    assert torch.equal(found["pred_boxes"].tensor, expected["pred_boxes"].tensor)
    if isinstance(expected["pred_masks"], Tensor):
        assert torch.equal(found["pred_masks"], expected["pred_masks"])
    else:
        assert list(found["pred_masks"]) == list(expected["pred_masks"])


@pytest.fixture
def clip() -> tuple[Tensor, MaskLogits, MaskSizes]:
    return (
        3 * random_normal(0, 20, K + 1),
        MaskLogits(random_normal(1, 1, 20, 5), random_normal(2, 1, 3, 5, 8, 12)),
        SIZES,
    )


@pytest.fixture
def expected_video(clip: tuple[Tensor, MaskLogits, MaskSizes]) -> dict[str, Any]:
    return video_inference(*clip)


def test_a_video_reaches_the_host_in_one_copy(
    clip: tuple[Tensor, MaskLogits, MaskSizes], expected_video: dict[str, Any], waits: None
) -> None:
    video_inference(*clip)
    with HostCopies() as copies:
        found = video_inference(*clip)
    assert copies == ["cpu"]
    masks, expected_masks = found.pop("pred_masks"), expected_video.pop("pred_masks")
    assert found == expected_video
    assert all(torch.equal(mask, expected) for mask, expected in zip(masks, expected_masks, strict=True))


def test_joined_bytes_are_the_same_arrays(waits: None) -> None:
    tensors = [
        torch.tensor([[True, False, True]]),
        torch.tensor(7),
        torch.zeros(0, 3, dtype=torch.float64),
        random_normal(0, 2, 3).T,
        torch.tensor([-1, 2**40]),
        torch.tensor([3, 255], dtype=torch.uint8),
    ]
    for array, tensor in zip(to_host(*tensors), tensors, strict=True):
        assert array.dtype == tensor.numpy().dtype
        assert np.array_equal(array, tensor.numpy())


@pytest.mark.parametrize("num_queries", [4, 50])
def test_different_queries_include_those_wanted(num_queries: int, waits: None) -> None:
    wanted = torch.tensor([3, 0, 3, 1, 0])
    queries, places = different(wanted, num_queries)
    assert torch.equal(queries[places], wanted)
    assert len(queries) <= len(wanted)


def test_chosen_ones_come_first_in_their_order(waits: None) -> None:
    assert chosen_first(torch.tensor([False, True, False, True])).tolist() == [1, 3, 0, 2]


def test_classes_are_looked_up() -> None:
    assert is_among(torch.tensor([4, 0, 2]), {2, 4, 9}).tolist() == [True, False, True]
    assert is_among(torch.tensor([4, 0]), []).tolist() == [False, False]
