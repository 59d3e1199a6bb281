"""What clients get for their pictures: JSON, drawings, label maps and GeoJSON, of one content."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mask2former.deploy.results import Segmentation
from mask2former.deploy.serving.models import SegmentationAnswer, SegmentOptions
from mask2former.deploy.serving.outputs import encode
from tests.deploy.serving.fakes import CLASSES, FakeSegmenter, png, segment, segmentation, service

TASKS = FakeSegmenter.tasks
SIZE = (20, 30)


@pytest.fixture(scope="module")
def client():
    with service() as client:
        yield client


def ask(client, **fields):
    answer = client.post("/v1/segment", files={"picture": ("a.png", png(*SIZE))}, data=fields)
    assert answer.status_code == 200, answer.text
    return answer


def picture_of(answer):
    assert answer.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(answer.content))


@pytest.mark.parametrize("masks", ["rle", "polygons", "none"])
@pytest.mark.parametrize("task", TASKS)
def test_json_is_what_the_description_promises(client, task, masks):
    content = ask(client, task=task, masks=masks).json()
    answer = SegmentationAnswer.model_validate(content, extra="forbid", strict=False)
    assert (answer.task, answer.height, answer.width) == (task, *SIZE)
    assert {("mask" in item, "polygons" in item) for item in content["segments"]} == {
        (masks == "rle", masks == "polygons")
    }


def test_masks_are_those_of_the_model(client):
    content = ask(client).json()
    for item, expected in zip(content["segments"], segmentation(SIZE, "panoptic").segments, strict=True):
        assert np.array_equal(coco_mask.decode(item["mask"]).astype(bool), expected.bitmap())
        assert item["area"] == expected.area and item["name"] == expected.name


@pytest.mark.parametrize("output", ["json", "overlay", "label_map", "geojson"])
@pytest.mark.parametrize("task", TASKS)
def test_base64_gives_what_a_form_gives(client, task, output):
    body = {"picture": base64.b64encode(png(*SIZE)).decode(), "task": task, "output": output}
    answer = client.post("/v1/segment", json=body)
    assert answer.status_code == 200 and answer.content == ask(client, task=task, output=output).content


def test_the_first_task_is_the_default(client):
    assert ask(client).json()["task"] == "panoptic"


def test_an_overlay_is_the_drawing_of_the_result(client):
    picture = np.asarray(Image.open(io.BytesIO(png(*SIZE))))
    drawing = segmentation(SIZE, "panoptic").draw(picture)
    assert np.array_equal(np.asarray(picture_of(ask(client, output="overlay"))), drawing)


def test_a_panoptic_label_map_holds_segment_numbers_and_explains_them(client):
    labels = picture_of(ask(client, output="label_map"))
    assert np.array_equal(np.asarray(labels), segmentation(SIZE, "panoptic").label_map)
    assert [item["name"] for item in json.loads(labels.text["segmentation"])["segments"]] == ["grass", "ball"]


def test_a_semantic_label_map_holds_class_numbers(client):
    labels = np.asarray(picture_of(ask(client, output="label_map", task="semantic")))
    assert np.array_equal(labels, segmentation(SIZE, "semantic").label_map)


def test_in_a_label_map_of_instances_the_best_is_on_top(client):
    labels = np.asarray(picture_of(ask(client, output="label_map", task="instance", threshold="0")))
    best = segmentation(SIZE, "instance").segments[0].bitmap()
    assert (labels[best] == 1).all() and (labels[~best] == 2).all()


def test_more_segments_than_8_bits_hold_make_a_16_bit_map():
    masks = np.eye(300, dtype=bool).reshape(300, 1, 300)
    many = Segmentation(
        "panoptic", 1, 300, tuple(segment(mask, 1, 0.9) for mask in masks), np.arange(1, 301)[None], None, CLASSES
    )
    options = SegmentOptions(task="panoptic", output="label_map")
    labels = Image.open(io.BytesIO(encode(many, np.zeros((1, 300, 3), np.uint8), options)))
    assert labels.mode.startswith("I;16") and np.array_equal(np.asarray(labels), many.label_map)


@pytest.mark.parametrize(
    ("threshold", "num_segments"), [("0", 3), ("0.3", 2), ("0.6", 2), ("0.7", 1), ("1", 0), (None, 2)]
)
def test_the_threshold_leaves_weak_instances_out(client, threshold, num_segments):
    fields = {"task": "instance"} | ({} if threshold is None else {"threshold": threshold})
    assert len(ask(client, **fields).json()["segments"]) == num_segments


def test_segments_below_the_threshold_leave_the_label_map_and_the_others_move_up(client):
    labels = picture_of(ask(client, output="label_map", threshold="0.8"))
    whole = segmentation(SIZE, "panoptic").label_map
    assert np.array_equal(np.asarray(labels), np.where(whole == 2, 1, 0))
    assert len(json.loads(labels.text["segmentation"])["segments"]) == 1


def test_of_semantic_classes_below_the_threshold_the_label_map_says_none(client):
    labels = np.asarray(picture_of(ask(client, output="label_map", task="semantic", threshold="0.8")))
    assert np.array_equal(labels, np.where(segmentation(SIZE, "semantic").label_map == 1, 1, 255))


def test_geojson_has_a_feature_for_each_segment_with_its_holes(client):
    answer = ask(client, output="geojson")
    assert answer.headers["content-type"] == "application/geo+json"
    content = answer.json()
    assert content["type"] == "FeatureCollection"
    for feature, expected in zip(content["features"], segmentation(SIZE, "panoptic").segments, strict=True):
        assert feature["properties"]["class"] == expected.name and feature["geometry"]["type"] == "MultiPolygon"
        area = sum(signed_area(ring) for part in feature["geometry"]["coordinates"] for ring in part)
        assert abs(area) == expected.area  # along pixel edges, rings of holes run the other way


def signed_area(ring):
    (x, y), (next_x, next_y) = np.array(ring[:-1]).T, np.array(ring[1:]).T
    return float((x * next_y - next_x * y).sum() / 2)
