"""Drawings of result files, as the evaluators write them; a perfect prediction looks like the truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

from mask2former.data.masks import decode_segmentations, rgb_to_id
from mask2former.data.reading import read_class_map, read_panoptic_ids
from mask2former.data.record_lists import load_records
from mask2former.evaluation import InstanceSegEvaluator, PanopticEvaluator, SemanticEvaluator
from mask2former.evaluation.result_pictures import ResultPictures

SIDE = 384  # a scene of 96 pixels is drawn four times as large


def perfect(record: dict) -> dict:
    """The annotations of a record as a model would predict them."""
    output = {}
    if "pan_seg_file_name" in record:
        ids = rgb_to_id(read_panoptic_ids(record["pan_seg_file_name"]))
        output["panoptic_seg"] = torch.from_numpy(ids), record["segments_info"]
    if "sem_seg_file_name" in record:
        labels = read_class_map(record["sem_seg_file_name"])
        output["sem_seg"] = torch.from_numpy(np.where(labels == 255, 0, labels))
    if "annotations" in record:
        size = (record["height"], record["width"])
        masks = decode_segmentations([entry["segmentation"] for entry in record["annotations"]], size)
        instances = Instances(size, pred_masks=torch.from_numpy(masks))
        instances.pred_boxes = Boxes(torch.zeros(len(masks), 4))
        instances.pred_classes = torch.tensor([entry["category_id"] for entry in record["annotations"]])
        instances.scores = torch.linspace(0.9, 0.6, len(masks))
        output["instances"] = instances
    return output


EVALUATORS = {
    "panoptic": (PanopticEvaluator, "predictions.json"),
    "semantic": (SemanticEvaluator, "sem_seg_predictions.json"),
    "instance": (InstanceSegEvaluator, "coco_instances_results.json"),
}


@pytest.fixture
def write_results(digits_root, tmp_path):
    """Evaluates perfect predictions for digits_<form>_val; returns the result file."""

    def write(form: str) -> Path:
        make, file_name = EVALUATORS[form]
        evaluator = make(f"digits_{form}_val", output_dir=str(tmp_path))
        for record in load_records([f"digits_{form}_val"], config_key="DATASETS.TEST"):
            evaluator.process([record], [perfect(record)])
        evaluator.evaluate()
        return tmp_path / file_name

    return write


def panels(drawing: np.ndarray) -> list[np.ndarray]:
    gap = (drawing.shape[1] - 3 * SIDE) // 2
    return [drawing[-SIDE:, number * (SIDE + gap) :][:, :SIDE] for number in range(3)]


@pytest.mark.parametrize("form", EVALUATORS)
def test_every_result_file_is_drawn_beside_the_truth(write_results, form):
    results = ResultPictures(str(write_results(form)), f"digits_{form}_val")
    assert results.form == form and len(results.records) == 4
    for record in results.records:
        image, truth, prediction = panels(results.draw(record))
        assert (truth != image).any()
        differs = (truth != prediction).any(-1).mean()
        if form == "panoptic":
            assert differs == 0
        else:  # scores beside the names; void pixels, which the prediction gives a class
            assert differs < 0.2


def test_instances_below_the_threshold_are_left_out(write_results):
    results = ResultPictures(str(write_results("instance")), "digits_instance_val")
    image, _, prediction = panels(results.draw(results.records[0], threshold=0.95))
    assert np.array_equal(image, prediction)


def test_instances_are_drawn_beside_panoptic_truth_too(write_results):
    path = write_results("instance")
    results = ResultPictures(str(path), "digits_panoptic_val")
    _, truth, prediction = panels(results.draw(results.records[0]))
    assert (truth != prediction).any(-1).mean() > 0.2  # the textures are in the truth only


def test_pictures_without_a_semantic_result_are_not_drawn(write_results):
    path = write_results("semantic")
    entries = json.loads(path.read_text())
    first = entries[0]["file_name"]
    path.write_text(json.dumps([entry for entry in entries if entry["file_name"] == first]))
    assert [record["file_name"] for record in ResultPictures(str(path), "digits_semantic_val").records] == [first]


def test_semantic_results_of_another_machine_are_found_by_the_names_of_pictures(write_results):
    path = write_results("semantic")
    content = path.read_text().replace(MetadataCatalog.get("digits_semantic_val").image_root, "/elsewhere")
    assert "/elsewhere/000000.png" in content
    path.write_text(content)
    assert len(ResultPictures(str(path), "digits_semantic_val").records) == 4


def test_results_of_another_data_set_are_refused(write_results):
    path = write_results("panoptic")
    content = json.loads(path.read_text())
    content["annotations"][2]["image_id"] = 4711
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"4 pictures, and 1 of them .* for example 4711.*--dataset"):
        ResultPictures(str(path), "digits_panoptic_val")


RUNS = {"size": [96, 96], "counts": "PR2"}  # all of 9216 pixels outside


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds no results"),
        ({"annotations": []}, "holds no results"),
        ([{"image_id": 0, "bbox": [0, 0, 1, 1]}], "holds no results"),
        ([{"image_id": 0, "score": 1, "category_id": 77, "segmentation": RUNS}], "category 77 is none of data set"),
        ([{"image_id": 0, "score": 1, "segmentation": RUNS}], "the entry 'category_id' is missing"),
        ([{"file_name": "000000.png", "category_id": 13}], "category 13 is none of data set"),
    ],
)
def test_files_that_are_no_results_are_refused_by_name(digits_root, tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as raised:
        ResultPictures(str(path), "digits_instance_val" if "score" in str(content) else "digits_semantic_val")
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("segmentation", [{"size": [48, 96], "counts": "PR1"}, None])
def test_a_mask_that_does_not_fit_its_picture_is_refused(digits_root, tmp_path, segmentation):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"image_id": 0, "score": 1, "category_id": 1, "segmentation": segmentation}]))
    results = ResultPictures(str(path), "digits_instance_val")
    with pytest.raises(ValueError, match=r"results\.json: the result for .*000000\.png is damaged"):
        results.draw(results.records[0])
