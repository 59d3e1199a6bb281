"""Evaluators by the dataset's type and the enabled tasks, and what they say of perfect results."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.structures import Boxes, Instances
from panopticapi.utils import rgb2id
from PIL import Image

from mask2former.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemanticEvaluator,
    InstanceSegEvaluator,
    PanopticEvaluator,
    SemanticEvaluator,
    build_evaluator,
)
from tests.engine.tiny import tiny_config
from tests.evaluation.scenes import make_scenes, register, register_scenes, run
from tests.evaluation.street import register_street

pytestmark = pytest.mark.usefixtures("digits_root")
TEST = "MODEL__MASK_FORMER__TEST__"


def _kinds(evaluator):
    return (
        [type(part) for part in evaluator._evaluators]
        if isinstance(evaluator, DatasetEvaluators)
        else [type(evaluator)]
    )


@pytest.mark.parametrize(
    ("task", "changes", "expected"),
    [
        ("panoptic", {}, [PanopticEvaluator, InstanceSegEvaluator, SemanticEvaluator]),
        ("panoptic", {f"{TEST}INSTANCE_ON": False}, [PanopticEvaluator, SemanticEvaluator]),
        ("panoptic", {f"{TEST}PANOPTIC_ON": False, f"{TEST}SEMANTIC_ON": False}, [InstanceSegEvaluator]),
        ("instance", {}, [InstanceSegEvaluator]),
        ("semantic", {}, [SemanticEvaluator]),
    ],
)
def test_a_dataset_gets_the_evaluators_of_its_type_and_of_the_enabled_tasks(tmp_path, task, changes, expected):
    evaluator = build_evaluator(tiny_config(tmp_path, task, **changes), f"digits_{task}_val")
    assert _kinds(evaluator) == expected
    assert issubclass(InstanceSegEvaluator, COCOEvaluator)


def test_a_dataset_of_unknown_type_is_refused_with_the_known_types(tmp_path):
    MetadataCatalog.get("keypoints_of_cats").evaluator_type = "keypoints"
    with pytest.raises(
        ValueError, match=r"'keypoints_of_cats' .* evaluator_type 'keypoints' .* choose from: .*sem_seg"
    ):
        build_evaluator(tiny_config(tmp_path), "keypoints_of_cats")


def test_nothing_to_evaluate_is_refused_with_the_switches(tmp_path):
    off = {f"{TEST}{task}_ON": False for task in ("SEMANTIC", "INSTANCE", "PANOPTIC")}
    with pytest.raises(ValueError, match=r"TEST.\{PANOPTIC_ON, INSTANCE_ON, SEMANTIC_ON\}"):
        build_evaluator(tiny_config(tmp_path, **off), "digits_panoptic_val")


class Oracle:
    """Answers with the ground truth in the format of the model."""

    def __init__(self, name):
        self._records = {record["image_id"]: record for record in DatasetCatalog.get(name)}
        self._metadata = MetadataCatalog.get(name)

    def __call__(self, inputs):
        return [self._answer(self._records[sample["image_id"]]) for sample in inputs]

    def _answer(self, record):
        ids = rgb2id(np.asarray(Image.open(record["pan_seg_file_name"]).convert("RGB")))
        segments = record["segments_info"]
        panoptic_map = np.zeros(ids.shape, dtype=np.int32)
        semantic = torch.zeros(len(self._metadata.stuff_classes), *ids.shape)
        for number, segment in enumerate(segments, start=1):
            panoptic_map[ids == segment["id"]] = number
            semantic[segment["category_id"], torch.from_numpy(ids == segment["id"])] = 1
        things = [segment for segment in segments if segment["isthing"]]
        masks = torch.from_numpy(np.stack([ids == segment["id"] for segment in things]))
        instances = Instances(ids.shape, pred_masks=masks, scores=torch.ones(len(things)))
        instances.pred_classes = torch.tensor([segment["category_id"] for segment in things])
        instances.pred_boxes = Boxes(torch.zeros(len(things), 4))
        found = [
            {"id": number, "isthing": segment["isthing"], "category_id": segment["category_id"]}
            for number, segment in enumerate(segments, start=1)
        ]
        return {"panoptic_seg": (torch.from_numpy(panoptic_map), found), "sem_seg": semantic, "instances": instances}


def test_perfect_results_get_full_marks_in_all_three_tasks_in_one_pass(tmp_path):
    name = "digits_panoptic_val"
    evaluator = build_evaluator(tiny_config(tmp_path), name)
    inputs = [[{key: record[key] for key in ("file_name", "image_id")}] for record in DatasetCatalog.get(name)]
    results = inference_on_dataset(Oracle(name), inputs, evaluator)
    assert results["panoptic_seg"]["PQ"] == results["panoptic_seg"]["SQ_th"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100, abs=0.1)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)


def test_several_test_datasets_get_a_folder_each(tmp_path):
    cfg = tiny_config(tmp_path, DATASETS__TEST=("digits_panoptic_val", "digits_semantic_val"))
    build_evaluator(cfg, "digits_semantic_val")
    assert (tmp_path / "inference" / "digits_semantic_val").is_dir()


def test_boundary_ap_is_one_more_task_of_the_same_pass(tmp_path):
    name = "digits_instance_val"
    switches = [build_evaluator(tiny_config(tmp_path, "instance", TEST__BOUNDARY_AP=on), name) for on in (False, True)]
    assert [evaluator._tasks for evaluator in switches] == [("bbox", "segm"), ("bbox", "segm", "boundary")]


def test_mapillary_gets_all_three_tasks_though_it_has_no_instance_file(tmp_path):
    scenes = make_scenes(seed=0)
    name = register_scenes("vistas_panoptic", tmp_path / "data", scenes)
    evaluator = build_evaluator(tiny_config(tmp_path), name)
    assert _kinds(evaluator) == [PanopticEvaluator, InstanceSegEvaluator, SemanticEvaluator]
    results = run(evaluator, scenes, scenes)
    assert list(results) == ["panoptic_seg", "bbox", "segm", "sem_seg"]
    summary = (results["panoptic_seg"]["PQ"], results["segm"]["AP"], results["bbox"]["AP"], results["sem_seg"]["mIoU"])
    assert summary == pytest.approx((100, 100, 100, 100))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cityscapes_sem_seg", [CityscapesSemanticEvaluator]),
        ("cityscapes_instance", [CityscapesInstanceEvaluator]),
        ("cityscapes_panoptic_seg", [PanopticEvaluator, CityscapesSemanticEvaluator, CityscapesInstanceEvaluator]),
    ],
)
def test_cityscapes_gets_its_own_evaluators(tmp_path, kind, expected):
    name, _ = register_street("street_by_kind", tmp_path / "cityscapes", kind)
    assert _kinds(build_evaluator(tiny_config(tmp_path), name)) == expected


def test_lvis_without_its_package_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lvis", None)
    name = register("lvis_like", [], evaluator_type="lvis", json_file="absent.json")
    with pytest.raises(ImportError, match="'lvis_like' needs the package lvis: pip install lvis"):
        build_evaluator(tiny_config(tmp_path), name)
