"""AP of a registered dataset: class ids with gaps, ground truth from panoptic files, and what is kept and written."""

from __future__ import annotations

import json
import logging
import math
import os

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as coco_mask

from mask2former.data.masks import id_to_rgb
from mask2former.evaluation import InstanceSegEvaluator
from mask2former.evaluation.instance_ground_truth import instances_from_panoptic
from tests.evaluation.scenes import (
    CATEGORIES,
    inputs_of,
    make_scenes,
    nearly_right,
    output_of,
    register,
    register_scenes,
    run,
)


@pytest.fixture
def gap_dataset(tmp_path):
    """Two things among other classes: dataset ids 30 and 50, contiguous ids 1 and 4."""
    square = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]
    shape = {"iscrowd": 0, "area": 36, "bbox": [2, 2, 6, 6], "segmentation": square}
    content = {
        "images": [{"id": "room", "width": 10, "height": 10}],
        "categories": [{"id": 30, "name": "chair"}, {"id": 50, "name": "table"}],
        "annotations": [{"id": number, "image_id": "room", "category_id": number, **shape} for number in (30, 50)],
    }
    path = tmp_path / "gaps.json"
    path.write_text(json.dumps(content))
    id_map = {30: 1, 50: 4}
    return register("things_with_gaps", [], json_file=str(path), thing_dataset_id_to_contiguous_id=id_map)


def _found(*classes):
    masks = torch.zeros(len(classes), 10, 10, dtype=torch.bool)
    masks[:, 2:8, 2:8] = True
    boxes = Boxes(torch.tensor([[2.0, 2.0, 8.0, 8.0]]).repeat(len(classes), 1))
    scores = torch.ones(len(classes))
    return Instances((10, 10), pred_masks=masks, pred_boxes=boxes, scores=scores, pred_classes=torch.tensor(classes))


def _evaluate(name, folder, *classes, **options):
    evaluator = InstanceSegEvaluator(name, output_dir=str(folder), **options)
    evaluator.reset()
    evaluator.process([{"image_id": "room"}], [{"instances": _found(*classes)}])
    return evaluator.evaluate()


@pytest.mark.parametrize("use_fast_impl", [True, False])
def test_thing_ids_may_have_gaps(gap_dataset, tmp_path, capsys, use_fast_impl):
    results = _evaluate(gap_dataset, tmp_path, 1, 4, use_fast_impl=use_fast_impl)
    assert set(results) == {"bbox", "segm"}
    for figures in results.values():
        assert list(figures) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AP-chair", "AP-table"]
        assert figures["AP"] == figures["AP-chair"] == figures["AP-table"] == pytest.approx(100)
        assert math.isnan(figures["APl"])
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert sorted(result["category_id"] for result in written) == [30, 50]
    assert set(written[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert written[0]["bbox"] == [2, 2, 6, 6]
    assert capsys.readouterr().out == "", "nothing is printed past the log"


def test_boundary_ap_is_computed_when_asked_for(gap_dataset, tmp_path):
    results = _evaluate(gap_dataset, tmp_path, 1, tasks=("segm", "boundary"))
    assert list(results) == ["segm", "boundary"]
    assert results["boundary"]["AP-chair"] == pytest.approx(100) and results["boundary"]["AP"] == pytest.approx(50)


def test_a_class_that_is_no_thing_is_named(gap_dataset, tmp_path):
    with pytest.raises(ValueError, match=r"predicted class 2 of image 'room' is no thing .* its things are \[1, 4\]"):
        _evaluate(gap_dataset, tmp_path, 1, 2)


def test_masks_are_kept_as_run_lengths_only(gap_dataset):
    evaluator = InstanceSegEvaluator(gap_dataset)
    evaluator.process([{"image_id": "room"}], [{"instances": _found(1)}])
    ((kept,),) = evaluator._work.results()
    assert not any(isinstance(value, torch.Tensor) for value in kept.values())
    assert coco_mask.area(kept["segmentation"]) == 36


def test_a_model_that_finds_nothing_gets_0_and_a_warning(gap_dataset, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert _evaluate(gap_dataset, tmp_path)["segm"]["AP"] == 0
    assert "The model found no instance in 1 images" in caplog.text


def test_no_image_gives_no_figures_and_a_warning(gap_dataset, caplog):
    with caplog.at_level(logging.WARNING):
        assert InstanceSegEvaluator(gap_dataset).evaluate() == {}
    assert "No image of 'things_with_gaps' was evaluated" in caplog.text


def test_results_of_a_test_split_are_only_written(gap_dataset, tmp_path):
    content = json.loads((tmp_path / "gaps.json").read_text())
    del content["annotations"]
    (tmp_path / "gaps.json").write_text(json.dumps(content))
    assert _evaluate(gap_dataset, tmp_path, 1) == {}
    assert len(json.loads((tmp_path / "coco_instances_results.json").read_text())) == 1


def test_figures_are_those_of_detectron2(tmp_path):
    scenes = make_scenes(seed=2)
    dataset = register_scenes("instance_scenes", tmp_path, scenes)
    content = instances_from_panoptic(
        **{key: MetadataCatalog.get(dataset).get(key) for key in ("panoptic_json", "panoptic_root")}, thing_ids={10, 20}
    )
    numbers = {scene.name: number for number, scene in enumerate(scenes)}
    for entry in content["annotations"]:
        entry["image_id"] = numbers[entry["image_id"]]
    content["images"] = [{**image, "id": numbers[image["id"]]} for image in content["images"]]
    content["categories"].sort(key=lambda category: -category["id"])  # their order means nothing
    content["info"] = {}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    # Detectron2's evaluator demands contiguous ids without gaps.
    options = {"json_file": str(tmp_path / "instances.json"), "thing_classes": ["chair", "lamp"]}
    dataset = register("two_things", [], **options, thing_dataset_id_to_contiguous_id={10: 0, 20: 1})
    evaluators = [InstanceSegEvaluator(dataset), COCOEvaluator(dataset, use_fast_impl=False)]
    results = []
    for evaluator in evaluators:
        evaluator.reset()
        for seed, scene in enumerate(scenes):
            instances = _output(nearly_right(scene, seed))
            evaluator.process([{"image_id": numbers[scene.name]}], [{"instances": instances}])
        results.append(evaluator.evaluate())
    found, expected = results
    assert 0 < found["segm"]["AP"] < 100
    assert list(found) == list(expected)
    for task in found:
        assert list(found[task]) == list(expected[task])
        assert found[task] == pytest.approx(expected[task], abs=1e-9, nan_ok=True)


def _output(scene):
    instances = output_of(scene)["instances"]
    instances.pred_classes = (instances.pred_classes == 3).long()
    return instances


def test_things_of_panoptic_files_are_instances_where_a_dataset_has_no_others(tmp_path):
    """Mapillary Vistas: `json_file` is None, and `thing_classes` names all classes."""
    scenes = make_scenes(seed=3)
    dataset = register_scenes("vistas", tmp_path / "data", scenes)
    figures = run(InstanceSegEvaluator(dataset, output_dir=str(tmp_path / "out")), scenes, scenes)["segm"]
    assert figures["AP"] == pytest.approx(100)
    assert [name for name in figures if "-" in name] == ["AP-chair", "AP-lamp"]

    made = json.loads((tmp_path / "out" / "vistas_instances.json").read_text())
    assert made["categories"] == [{"id": 10, "name": "chair"}, {"id": 20, "name": "lamp"}]
    expected = [
        (scene.name, CATEGORIES[segment["category_id"]].id, segment["iscrowd"], (scene.ids == segment["id"]).sum())
        for scene in scenes
        for segment in scene.segments
        if segment["isthing"]
    ]
    keys = ("image_id", "category_id", "iscrowd", "area")
    assert [tuple(entry[key] for key in keys) for entry in made["annotations"]] == expected
    assert [coco_mask.area(entry["segmentation"]) for entry in made["annotations"]] == [area for *_, area in expected]


def test_a_segment_without_a_pixel_is_no_instance(tmp_path):
    Image.fromarray(id_to_rgb(np.array([[5, 5], [0, 0]]))).save(tmp_path / "a.png")
    segments = [{"id": number, "category_id": 1} for number in (5, 6)]
    content = {
        "annotations": [{"image_id": "a", "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "thing", "isthing": 1}],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    made = instances_from_panoptic(str(tmp_path / "panoptic.json"), str(tmp_path), set())
    assert [(entry["area"], entry["bbox"]) for entry in made["annotations"]] == [(2, [0, 0, 2, 1])]


def test_what_was_made_of_panoptic_files_is_made_again_only_when_they_change(tmp_path):
    scenes = make_scenes(seed=3)
    dataset = register_scenes("vistas", tmp_path / "data", scenes)
    run(InstanceSegEvaluator(dataset, output_dir=str(tmp_path)), scenes, scenes)
    cache, source = tmp_path / "vistas_instances.json", tmp_path / "data" / "panoptic.json"
    first = cache.stat().st_mtime_ns
    run(InstanceSegEvaluator(dataset, output_dir=str(tmp_path)), scenes, scenes)
    assert cache.stat().st_mtime_ns == first
    os.utime(source, ns=(first + 10**9, first + 10**9))
    run(InstanceSegEvaluator(dataset, output_dir=str(tmp_path)), scenes, scenes)
    assert cache.stat().st_mtime_ns != first


def test_records_with_annotations_are_a_ground_truth_too(tmp_path):
    """A dataset that was registered with Detectron2's records alone, without a file."""
    square = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]
    annotation = {"bbox": [2, 2, 6, 6], "bbox_mode": 1, "category_id": 1, "segmentation": square}
    record = {"file_name": "a.png", "image_id": "room", "height": 10, "width": 10, "annotations": [annotation]}
    dataset = register("records_only", [record], thing_classes=["chair", "table"])
    results = _evaluate(dataset, tmp_path, 1)
    assert results["segm"]["AP-table"] == pytest.approx(100) and math.isnan(results["segm"]["AP-chair"])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"json_file": "absent.json"}, "json_file of its metadata is 'absent.json', which does not exist"),
        ({"json_file": None, "panoptic_json": "absent.json"}, "panoptic_json .* 'absent.json', .*INSTANCE_ON"),
        ({"json_file": None, "panoptic_json": __file__}, "panoptic_root of its metadata is None"),
    ],
)
def test_missing_files_are_named_before_the_model_runs(metadata, message):
    with pytest.raises(FileNotFoundError, match=message):
        InstanceSegEvaluator(register("without_files", [], **metadata))


@pytest.mark.parametrize("content", ["", '{"images": [', '{"images": []} \n, '])
@pytest.mark.parametrize("key", ["json_file", "panoptic_json"])
def test_a_file_that_is_cut_off_is_named_before_the_model_runs(tmp_path, key, content):
    path = tmp_path / "cut.json"
    path.write_text(content)
    metadata = {"json_file": None, "panoptic_root": str(tmp_path), key: str(path)}
    with pytest.raises(ValueError, match=r"cut.json cannot be used.*: it has \d+ bytes and ends in the middle"):
        InstanceSegEvaluator(register("without_files", [], **metadata))
    path.write_text('{"images": []} \n')
    InstanceSegEvaluator(register("without_files", [], **metadata))


@pytest.mark.parametrize("content", ["{", '{"images": []}', "[]"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "damaged.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="damaged.json cannot be used, it is cut off or not what its name says"):
        _evaluate(register("damaged", [], json_file=str(path)), tmp_path, 1)


def test_an_unknown_task_is_refused(gap_dataset):
    with pytest.raises(ValueError, match="keypoints is none of bbox, segm, boundary"):
        InstanceSegEvaluator(gap_dataset, ("segm", "keypoints"))


def test_images_may_be_selected(tmp_path):
    scenes = make_scenes(seed=4)
    dataset = register_scenes("selected", tmp_path, scenes)
    evaluator = InstanceSegEvaluator(dataset)
    run(evaluator, scenes, [scenes[0], *(nearly_right(scene, 0) for scene in scenes[1:])])
    assert evaluator.evaluate()["segm"]["AP"] < 100
    assert evaluator.evaluate(img_ids=[inputs_of(scenes[0])["image_id"]])["segm"]["AP"] == pytest.approx(100)
