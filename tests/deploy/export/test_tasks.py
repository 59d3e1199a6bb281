"""The rules as graphs give what `modeling.postprocessing` gives, for every picture of a batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former.deploy.export.resizing import MapSizes, resized, resizing_matrix
from mask2former.deploy.export.tasks import rule_of_task
from mask2former.modeling.postprocessing import MaskSizes, ResultSettings, image_results, resized_to_output

B, Q, K = 3, 9, 4
SIZES = {
    "padded": ((32, 48), (29, 41), (23, 57)),
    "as it is": ((32, 48), (32, 48), (32, 48)),
    "one pixel": ((32, 48), (1, 1), (1, 1)),
}
SETTINGS = ResultSettings(
    semantic_output="labels",
    instance_output="masks",
    panoptic_on=True,
    resize_first=True,
    thing_ids=(0, 2),
    object_mask_threshold=0.3,
    overlap_threshold=0.6,
    topk=12,
    memory_budget=2**20,
)


def predictions(seed: int) -> tuple[Tensor, Tensor]:
    """Confident classes and a few large overlapping regions: (B, Q, K + 1) and (B, Q, 8, 12)."""
    generator = torch.Generator().manual_seed(seed)
    masks = F.interpolate(6 * torch.randn(B, Q, 3, 4, generator=generator), (8, 12), mode="bilinear")
    return 5 * torch.randn(B, Q, K + 1, generator=generator), masks


def expected(settings: ResultSettings, class_logits: Tensor, masks: Tensor, sizes: MapSizes) -> list[dict]:
    return [
        image_results(logits, mask.__getitem__, MaskSizes(*sizes), settings)
        for logits, mask in zip(class_logits, masks, strict=True)
    ]


@pytest.fixture(params=SIZES)
def sizes(request):
    return MapSizes(*SIZES[request.param])


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_maps_and_tables_are_equal(sizes, seed):
    class_logits, masks = predictions(seed)
    class_logits[1, :, -1] = 50  # nothing is found in the second picture
    maps, ids, classes, scores = rule_of_task("panoptic", SETTINGS, K)(class_logits, masks, sizes)
    for index, result in enumerate(expected(SETTINGS, class_logits, masks, sizes)):
        panoptic_map, infos = result["panoptic_seg"]
        assert torch.equal(maps[index], panoptic_map)
        opened = ids[index] > 0
        assert ids[index][opened].tolist() == [info["id"] for info in infos]
        assert classes[index][opened].tolist() == [info["category_id"] for info in infos]
        torch.testing.assert_close(scores[index][opened], torch.tensor([info["score"] for info in infos]))


def test_panoptic_maps_of_pictures_without_any_object_are_empty():
    class_logits, masks = predictions(0)
    class_logits[..., -1] = 50
    maps, ids, *_ = rule_of_task("panoptic", SETTINGS, K)(class_logits, masks, MapSizes(*SIZES["padded"]))
    assert not maps.any() and not ids.any() and maps.shape == (B, 23, 57)


@pytest.mark.parametrize("thing_ids", [(0, 2), None])
@pytest.mark.parametrize("seed", range(2))
def test_instances_are_equal(sizes, seed, thing_ids):
    settings = ResultSettings(**{**vars(SETTINGS), "thing_ids": thing_ids, "panoptic_on": False})
    class_logits, masks = predictions(seed)
    found = rule_of_task("instance", settings, K)(class_logits, masks, sizes)
    for index, result in enumerate(expected(settings, class_logits, masks, sizes)):
        instances = result["instances"]
        is_result = found[2][index] >= 0
        inside, boxes, scores, classes = (values[index][is_result] for values in found)
        assert torch.equal(inside, instances.pred_masks)
        assert torch.equal(boxes, instances.pred_boxes.tensor)
        torch.testing.assert_close(scores, instances.scores)
        found_any = scores > 0  # in which order empty masks come does not matter
        assert torch.equal(classes[found_any], instances.pred_classes[found_any].int())


@pytest.mark.parametrize("resize_first", [True, False])
def test_semantic_labels_and_confidence_are_equal(sizes, resize_first):
    settings = ResultSettings(**{**vars(SETTINGS), "resize_first": resize_first, "panoptic_on": False})
    settings = ResultSettings(**{**vars(settings), "instance_output": None})
    class_logits, masks = predictions(0)
    labels, confidence = rule_of_task("semantic", settings, K)(class_logits, masks, sizes)
    for index, result in enumerate(expected(settings, class_logits, masks, sizes)):
        assert torch.equal(labels[index], result["sem_seg"])
        torch.testing.assert_close(confidence[index], result["sem_seg_confidence"], rtol=1e-4, atol=1e-5)


def test_masks_are_resized_as_the_published_two_steps_do(sizes):
    masks = torch.randn(B, Q, 8, 12, generator=torch.Generator().manual_seed(0))
    found = resized(masks, sizes)
    for mask, result in zip(masks, found, strict=True):
        torch.testing.assert_close(result, resized_to_output(mask, MaskSizes(*sizes)), rtol=1e-4, atol=1e-5)


def test_resizing_to_the_same_size_changes_nothing():
    assert torch.equal(resizing_matrix(1000, 1000, 1000, torch.zeros(1)), torch.eye(1000))
