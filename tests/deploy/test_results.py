"""Results: what the model gives, as plain data; drawn, and written as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import Instances

from mask2former.data.masks import decode_segmentations, encode_rle
from mask2former.deploy import ClassInfo, Segment, Segmentation, segmentation_of
from mask2former.deploy.results import class_infos
from mask2former.modeling.postprocessing import RunLengthMasks

CLASSES = (
    ClassInfo("cat", (200, 0, 0), 17, is_thing=True),
    ClassInfo("sky", (0, 0, 200), 119, is_thing=False),
    ClassInfo("dog", (0, 200, 0), 18, is_thing=True),
)
LEFT = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)


def panoptic(**changes):
    ids = torch.where(LEFT, 7, 0).int()
    ids[0, 3] = 3
    infos = [
        {"id": 3, "category_id": 1, "isthing": False, "score": 0.75, **changes},
        {"id": 7, "category_id": 2, "isthing": True, "score": 0.5},
    ]
    return {"panoptic_seg": (ids, infos)}


def instances(masks):
    found = Instances((3, 4))
    found.pred_masks = masks
    found.scores = torch.tensor([0.9, 0.5, 0.25])
    found.pred_classes = torch.tensor([2, 0, 0])
    return {"instances": found}


def test_panoptic_segments_are_numbered_in_their_order():
    result = segmentation_of(panoptic(), "panoptic", CLASSES)
    assert result.label_map.tolist() == [[2, 2, 0, 1], [2, 2, 0, 0], [2, 0, 0, 0]]
    assert [(segment.name, segment.dataset_id, segment.is_thing) for segment in result.segments] == [
        ("sky", 119, False),
        ("dog", 18, True),
    ]
    dog = result.segments[1]
    assert (dog.score, dog.box, dog.area, dog.track_id) == (0.5, (0, 0, 2, 3), 5, None)
    np.testing.assert_array_equal(dog.bitmap(), LEFT.numpy())
    assert result.confidence is None


def test_a_score_that_is_not_known_is_none():
    assert segmentation_of(panoptic(score=None), "panoptic", CLASSES).segments[0].score is None


def test_instances_are_the_same_from_masks_and_from_run_lengths_and_none_is_empty():
    masks = torch.stack([LEFT, torch.zeros_like(LEFT), ~LEFT])
    rles = RunLengthMasks([encode_rle(mask.numpy()) for mask in masks])
    first = segmentation_of(instances(masks), "instance", CLASSES)
    second = segmentation_of(instances(rles), "instance", CLASSES)
    assert first.segments == second.segments
    assert [(segment.category, segment.area) for segment in first.segments] == [(2, 5), (0, 7)]
    assert first.label_map is None and (first.height, first.width) == (3, 4)


def test_a_semantic_result_is_the_same_from_scores_and_from_labels():
    scores = torch.tensor([[[3.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.5]]])
    labels = {"sem_seg": torch.tensor([[0, 2]]).int(), "sem_seg_confidence": torch.tensor([[0.75, 1.0]])}
    for prediction in ({"sem_seg": scores}, labels):
        result = segmentation_of(prediction, "semantic", CLASSES)
        assert result.label_map.tolist() == [[0, 2]] and result.confidence.tolist() == [[0.75, 1.0]]
        assert [(segment.name, segment.score) for segment in result.segments] == [("cat", 0.75), ("dog", 1.0)]


def test_pixels_without_any_evidence_have_the_lowest_confidence_there_is():
    result = segmentation_of({"sem_seg": torch.zeros(3, 1, 1)}, "semantic", CLASSES)
    np.testing.assert_allclose(result.confidence, 1 / 3)


@pytest.mark.parametrize("task", ["instance", "video"])
def test_a_task_without_result_is_refused(task):
    with pytest.raises(ValueError, match=task):
        segmentation_of(panoptic(), task, CLASSES)


def test_json_holds_masks_as_they_are_wanted():
    result = segmentation_of(panoptic(), "panoptic", CLASSES)
    with_rle, with_polygons, without = (
        json.loads(json.dumps(result.to_json(masks))) for masks in ("rle", "polygons", "none")
    )
    size = (result.height, result.width)
    for entry, polygons, bare, segment in zip(
        with_rle["segments"], with_polygons["segments"], without["segments"], result.segments, strict=True
    ):
        np.testing.assert_array_equal(decode_segmentations([entry.pop("mask")], size)[0], segment.bitmap())
        np.testing.assert_array_equal(decode_segmentations([polygons.pop("polygons")], size)[0], segment.bitmap())
        assert entry == polygons == bare
    assert with_rle["segments"][0]["box"] == [3, 0, 4, 1] and "track_id" not in with_rle["segments"][0]
    with pytest.raises(ValueError, match="'svg'.*rle, polygons, none"):
        result.to_json("svg")


def test_a_track_number_is_written_where_there_is_one():
    result = segmentation_of(panoptic(), "panoptic", CLASSES)
    tracked = replace(result, segments=(replace(result.segments[0], track_id=5),))
    assert tracked.to_json()["segments"][0]["track_id"] == 5


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_drawings_leave_out_what_is_below_the_threshold(task):
    image = np.full((3, 4, 3), 128, dtype=np.uint8)
    prediction = {
        **panoptic(),
        **instances(torch.stack([LEFT, ~LEFT, LEFT])),
        "sem_seg": torch.tensor([0, 1, 2]).int().view(3, 1).expand(3, 4),
        "sem_seg_confidence": torch.full((3, 4), 0.5),
    }
    result = segmentation_of(prediction, task, CLASSES)
    drawn, hidden = result.draw(image), result.draw(image, threshold=0.99)
    assert drawn.shape == hidden.shape and drawn.dtype == np.uint8
    assert (hidden == 128).all() and (drawn != 128).any()


def test_colors_are_those_of_the_classes():
    image = np.zeros((120, 160, 3), dtype=np.uint8)
    mask = encode_rle(np.ones((120, 160), dtype=bool))
    segment = Segment.of(mask, 0, CLASSES[0], score=None)
    result = Segmentation("panoptic", 120, 160, (segment,), np.ones((120, 160), np.int32), None, CLASSES)
    red, green, blue = np.median(result.draw(image).reshape(-1, 3), axis=0)
    assert red > 0 and green == blue == 0


def test_classes_of_a_panoptic_data_set():
    classes = class_infos(MetadataCatalog.get("coco_2017_val_panoptic"), 133)
    assert classes[0] == ClassInfo("person", (220, 20, 60), 1, is_thing=True)
    assert (classes[132].name, classes[132].dataset_id, classes[132].is_thing) == ("rug-merged", 200, False)
    assert sum(info.is_thing for info in classes) == 80
    assert len({info.dataset_id for info in classes}) == 133


def test_classes_that_the_metadata_does_not_know_have_their_index():
    assert [(info.name, info.dataset_id) for info in class_infos(Metadata(), 2)] == [("class 0", 0), ("class 1", 1)]
