"""Semantic figures: known answers, those of Detectron2, label files of all kinds, predictions that do not fit."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
import torch
from detectron2.evaluation import SemSegEvaluator
from PIL import Image
from pycocotools import mask as coco_mask

from mask2former.evaluation import SemanticEvaluator
from mask2former.evaluation.semantic_evaluation import read_truth, semantic_metrics
from tests.evaluation.scenes import (
    CATEGORIES,
    class_map,
    inputs_of,
    make_scenes,
    nearly_right,
    register,
    register_scenes,
    run,
)


@pytest.fixture
def scenes():
    return make_scenes(seed=1)


@pytest.fixture
def dataset(tmp_path, scenes):
    return register_scenes("semantic_scenes", tmp_path / "data", scenes)


def test_perfect_predictions_get_100(dataset, scenes):
    figures = run(SemanticEvaluator(dataset), scenes, scenes)["sem_seg"]
    assert figures == pytest.approx(dict.fromkeys(figures, 100))
    names = [category.name for category in CATEGORIES]
    single = [f"{kind}-{name}" for kind in ("IoU", "ACC") for name in names]
    assert set(figures) == {"mIoU", "fwIoU", "mACC", "pACC", *single}


def test_figures_and_files_are_those_of_detectron2(dataset, scenes, tmp_path):
    predictions = [nearly_right(scene, seed) for seed, scene in enumerate(scenes)]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    found = run(SemanticEvaluator(dataset, str(ours)), scenes, predictions)["sem_seg"]
    expected = run(SemSegEvaluator(dataset, distributed=False, output_dir=str(theirs)), scenes, predictions)["sem_seg"]
    assert 0 < found["mIoU"] < 100
    # Newer versions add boundary IoU.
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-9)
    files = [json.loads((folder / "sem_seg_predictions.json").read_text()) for folder in (ours, theirs)]
    assert files[0] == files[1] and {entry["category_id"] for entry in files[0]} == {7, 10, 11, 20}


def test_a_class_only_in_predictions_counts_in_the_mean_of_iou_alone():
    """Published figures come from Detectron2 0.5; later versions leave such a class out of both means."""
    # Rows are predictions: of 8 true pixels of "a" 6 are right, 2 are taken for "b"; ignored ones do not count.
    confusion = np.array([[6, 0, 0, 9], [2, 0, 0, 9], [0, 0, 0, 0], [0, 0, 0, 0]])
    figures = semantic_metrics(confusion, ["a", "b", "c"])
    assert figures["mIoU"] == pytest.approx(100 * (6 / 8) / 2)
    assert figures["mACC"] == figures["pACC"] == figures["fwIoU"] == figures["IoU-a"] == pytest.approx(75)
    assert math.isnan(figures["IoU-b"]) and math.isnan(figures["ACC-c"])


def test_without_a_labeled_pixel_nothing_can_be_said():
    assert all(math.isnan(value) for value in semantic_metrics(np.zeros((3, 3), dtype=np.int64), ["a", "b"]).values())


@pytest.mark.parametrize(
    ("suffix", "dtype", "num_classes", "ignore_label"),
    [
        ("png", np.uint8, 150, 255),
        ("tif", np.uint16, 847, 65535),  # ADE20K-full
        ("png", np.uint16, 847, 65535),
        ("png", np.uint8, 65, 65),  # Mapillary Vistas
        ("png", np.uint8, 255, 255),
        ("png", np.uint8, 3, 0),  # a class that is not judged
    ],
)
def test_labels_of_8_and_16_bits_are_read_and_one_value_is_ignored(tmp_path, suffix, dtype, num_classes, ignore_label):
    labels = np.array([[1, 2, 2], [num_classes - 1, ignore_label, ignore_label]], dtype=dtype)
    Image.fromarray(labels).save(tmp_path / f"labels.{suffix}")
    dataset = register(
        "label_files",
        [{"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / f"labels.{suffix}")}],
        stuff_classes=[str(number) for number in range(num_classes)],
        ignore_label=ignore_label,
    )
    evaluator = SemanticEvaluator(dataset, str(tmp_path / "out"))
    predicted = torch.tensor([[1, 1, 2], [num_classes - 1, 0, 1]])
    evaluator.process([{"file_name": "a.jpg"}], [{"sem_seg": predicted}])
    figures = evaluator.evaluate()["sem_seg"]
    assert figures["pACC"] == pytest.approx(75)
    assert figures["IoU-1"] == pytest.approx(50) and figures["ACC-1"] == pytest.approx(100)
    entries = json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text())
    assert [entry["category_id"] for entry in entries] == np.unique(predicted).tolist()
    decoded = sum(entry["category_id"] * coco_mask.decode(entry["segmentation"]).astype(int) for entry in entries)
    assert np.array_equal(decoded, predicted)


def test_bytes_suffice_for_the_labels_of_a_picture_of_a_dataset_with_more_classes(tmp_path):
    Image.fromarray(np.array([[7, 255]], dtype=np.uint8)).save(tmp_path / "labels.png")
    truth = read_truth(str(tmp_path / "labels.png"), num_classes=300, ignore_label=255, dataset_name="large")
    assert truth.tolist() == [[7, 300]]


def test_scores_and_labels_are_the_same_to_it(dataset, scenes):
    evaluator = SemanticEvaluator(dataset)
    for scene in scenes:
        labels = torch.from_numpy(class_map(scene).astype(np.int64)).clamp(max=len(CATEGORIES) - 1)
        evaluator.process([inputs_of(scene)], [{"sem_seg": labels}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (torch.zeros(5, 90, 120), r"must be \(4, H, W\) scores .* got \(5, 90, 120\) .*NUM_CLASSES"),
        (torch.zeros(4, 45, 60), r"\(height, width\) \(90, 120\), but the prediction for .* has \(45, 60\)"),
        (torch.full((90, 120), 4), r"predicted labels 4\.\.4, the dataset has 4 classes"),
    ],
)
def test_a_prediction_that_does_not_fit_is_named_with_its_image(dataset, scenes, prediction, message):
    evaluator = SemanticEvaluator(dataset)
    with pytest.raises(ValueError, match=message) as error:
        evaluator.process([inputs_of(scenes[0])], [{"sem_seg": prediction}])
        evaluator.evaluate()
    assert scenes[0].name in str(error.value)


def test_a_label_that_is_no_class_is_named(tmp_path, dataset, scenes):
    path = tmp_path / "data" / f"{scenes[0].name}_labels.png"
    Image.fromarray(np.full((90, 120), 4, dtype=np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"_labels.png has the labels \[4\]: .* classes 0\.\.3 and ignores 255"):
        run(SemanticEvaluator(dataset), scenes[:1], scenes[:1])


def test_pictures_without_label_files_are_refused_with_the_way_out():
    dataset = register("unlabeled", [{"file_name": "a.jpg"}], stuff_classes=["sky"], ignore_label=255)
    with pytest.raises(ValueError, match="'unlabeled' has pictures without a semantic label file .*SEMANTIC_ON"):
        SemanticEvaluator(dataset)


def test_no_image_gives_no_figures_and_a_warning(dataset, caplog):
    with caplog.at_level(logging.WARNING):
        assert SemanticEvaluator(dataset).evaluate() == {}
    assert "No image of 'semantic_scenes' was evaluated" in caplog.text
