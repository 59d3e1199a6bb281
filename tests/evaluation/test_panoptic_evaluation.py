"""PQ: equal to Detectron2's evaluator, and what it says about predictions that do not fit."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
import torch
from detectron2.evaluation import COCOPanopticEvaluator
from panopticapi.utils import rgb2id
from PIL import Image

from mask2former.evaluation import PanopticEvaluator
from tests.evaluation.scenes import (
    CATEGORIES,
    Scene,
    inputs_of,
    make_scenes,
    nearly_right,
    output_of,
    register_scenes,
    run,
)


@pytest.fixture
def scenes():
    return make_scenes(seed=0)


@pytest.fixture
def dataset(tmp_path, scenes):
    return register_scenes("panoptic_scenes", tmp_path / "data", scenes)


def test_perfect_predictions_get_100(dataset, scenes, tmp_path, capsys):
    results = run(PanopticEvaluator(dataset, str(tmp_path)), scenes, scenes)
    groups = [f"{name}{suffix}" for suffix in ("", "_th", "_st") for name in ("PQ", "SQ", "RQ")]
    assert results == {"panoptic_seg": pytest.approx(dict.fromkeys(groups, 100))}
    assert capsys.readouterr().out == "", "panopticapi prints nothing past the log"


def test_figures_are_those_of_detectron2(dataset, scenes, tmp_path):
    predictions = [nearly_right(scene, seed) for seed, scene in enumerate(scenes)]
    found = run(PanopticEvaluator(dataset, str(tmp_path / "ours")), scenes, predictions)
    expected = run(COCOPanopticEvaluator(dataset, str(tmp_path / "theirs")), scenes, predictions)
    assert 0 < found["panoptic_seg"]["PQ"] < 100
    assert found["panoptic_seg"] == pytest.approx(dict(expected["panoptic_seg"]), abs=1e-9)
    assert list(found["panoptic_seg"]) == list(expected["panoptic_seg"])


def test_one_of_two_segments_found_with_an_iou_of_four_fifths(tmp_path):
    """SQ 80, RQ = 1 / (1 + 1/2): PQ 53.3, for stuff; no thing occurs."""
    size = (90, 120)
    true, found = np.zeros(size, dtype=np.int32), np.zeros(size, dtype=np.int32)
    true[:, :100], true[:40, 100:] = 1, 2
    found[:, :80] = 1
    segments = [{"id": key, "category_id": 0, "isthing": False, "iscrowd": 0} for key in (1, 2)]
    scene = Scene("a_0_0", true, segments)
    evaluator = PanopticEvaluator(register_scenes("two_segments", tmp_path, [scene]))
    evaluator.process([inputs_of(scene)], [{"panoptic_seg": (torch.from_numpy(found), segments[:1])}])
    figures = evaluator.evaluate()["panoptic_seg"]
    assert [figures[f"{name}_st"] for name in ("PQ", "SQ", "RQ")] == pytest.approx([160 / 3, 80, 200 / 3])
    assert figures["PQ"] == figures["PQ_st"] and math.isnan(figures["PQ_th"])


def test_results_are_left_in_the_format_of_coco(dataset, scenes, tmp_path):
    evaluator = PanopticEvaluator(dataset, str(tmp_path))
    run(evaluator, scenes, scenes)
    content = json.loads((tmp_path / "predictions.json").read_text())
    for scene, annotation in zip(scenes, content["annotations"], strict=True):
        picture = Image.open(tmp_path / "predictions" / annotation["file_name"])
        assert np.array_equal(rgb2id(np.asarray(picture)), scene.ids)
        assert annotation["image_id"] == scene.name
        expected = [{"id": s["id"], "category_id": CATEGORIES[s["category_id"]].id} for s in scene.segments]
        assert annotation["segments_info"] == expected
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == pytest.approx(100), "evaluating again changes nothing"


def test_pictures_are_kept_as_compressed_bytes(dataset, scenes):
    evaluator = PanopticEvaluator(dataset)
    evaluator.process([inputs_of(scenes[0])], [output_of(scenes[0])])
    (kept,) = evaluator._work.results()
    assert isinstance(kept.png, bytes) and len(kept.png) < scenes[0].ids.nbytes / 10


def test_the_output_of_the_model_is_left_alone(dataset, scenes):
    output = output_of(scenes[0])
    before = [dict(info) for info in output["panoptic_seg"][1]]
    PanopticEvaluator(dataset).process([inputs_of(scenes[0])], [output])
    assert output["panoptic_seg"][1] == before


def test_a_missing_prediction_is_named(dataset, scenes):
    with pytest.raises(ValueError, match=f"1 of 4 annotated images have no .* '{scenes[3].name}'"):
        run(PanopticEvaluator(dataset), scenes[:3], scenes[:3])


def test_a_prediction_of_another_size_is_named(dataset, scenes):
    evaluator = PanopticEvaluator(dataset)
    for scene in scenes:
        ids, segments = output_of(scene)["panoptic_seg"]
        evaluator.process([inputs_of(scene)], [{"panoptic_seg": (ids[:50], segments)}])
    with pytest.raises(ValueError, match=r"\(height, width\) \(50, 120\), but .* has \(90, 120\)"):
        evaluator.evaluate()


@pytest.mark.parametrize(("is_thing", "message"), [(True, r"no thing .* from \[1, 3\]"), (False, "no stuff class")])
def test_a_class_that_the_dataset_lacks_is_named(dataset, scenes, is_thing, message):
    ids, _ = output_of(scenes[0])["panoptic_seg"]
    output = {"panoptic_seg": (ids, [{"id": 1, "category_id": 9, "isthing": is_thing}])}
    with pytest.raises(ValueError, match=f"predicted class 9 of image '{scenes[0].name}' is {message}"):
        PanopticEvaluator(dataset).process([inputs_of(scenes[0])], [output])


def test_two_images_of_the_same_file_name_are_refused(dataset, scenes):
    evaluator = PanopticEvaluator(dataset)
    evaluator.process([inputs_of(scenes[0]), inputs_of(scenes[0])], [output_of(scenes[0])] * 2)
    with pytest.raises(ValueError, match=f"2 images have the result file '{scenes[0].name}"):
        evaluator.evaluate()


def test_no_image_gives_no_figures_and_a_warning(dataset, caplog):
    with caplog.at_level(logging.WARNING):
        assert PanopticEvaluator(dataset).evaluate() == {}
    assert "No image of 'panoptic_scenes' was evaluated" in caplog.text


def test_missing_files_are_named_before_the_model_runs(tmp_path, scenes, dataset):
    (tmp_path / "data" / "panoptic.json").unlink()
    with pytest.raises(FileNotFoundError, match="its panoptic_json .*panoptic.json' does not exist"):
        PanopticEvaluator(dataset)
