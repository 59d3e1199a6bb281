"""The evaluator of video instance segmentation: what it keeps, measures and writes."""

import json
import logging
import zipfile

import pytest
import torch
from detectron2.data import MetadataCatalog
from pycocotools import mask as coco_mask

from mask2former.config import add_maskformer2_config
from mask2former.evaluation import YTVISEvaluator, build_evaluator

NAME = "videos_of_a_test"
CATEGORIES = [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}]


def track(top: int) -> torch.Tensor:
    """(2, 30, 40): a square that moves to the right."""
    masks = torch.zeros(2, 30, 40, dtype=torch.bool)
    for t in range(2):
        masks[t, top : top + 10, 10 * t : 10 * t + 10] = True
    return masks


def run_lengths(mask: torch.Tensor) -> dict:
    rle = coco_mask.encode(mask.byte().numpy().copy(order="F"))
    return {**rle, "counts": rle["counts"].decode()}


@pytest.fixture
def register(tmp_path):
    def register(*, with_objects: bool = True) -> str:
        videos = [{"id": 4, "height": 30, "width": 40, "length": 2, "file_names": ["a.jpg", "b.jpg"]}]
        shapes = [run_lengths(mask) for mask in track(0)]
        tracks = [{"id": 1, "video_id": 4, "category_id": 9, "iscrowd": 0, "segmentations": shapes}]
        content = {"videos": videos, "categories": CATEGORIES, "annotations": tracks if with_objects else []}
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        MetadataCatalog.pop(NAME, None)
        MetadataCatalog.get(NAME).set(
            json_file=str(path), thing_dataset_id_to_contiguous_id={5: 0, 9: 1}, evaluator_type="ytvis"
        )
        return NAME

    yield register
    MetadataCatalog.pop(NAME, None)


def output(*tops: int, label: int = 1) -> dict:
    return {
        "image_size": (30, 40),
        "pred_scores": [0.9 - 0.1 * index for index in range(len(tops))],
        "pred_labels": [label] * len(tops),
        "pred_masks": [track(top) for top in tops],
    }


def test_a_video_that_is_right_is_measured_and_written_for_the_server(register, tmp_path) -> None:
    evaluator = YTVISEvaluator(register(), str(tmp_path / "out"))
    evaluator.process([{"video_id": 4}], output(0, 15))
    metrics = evaluator.evaluate()["segm"]
    assert metrics["AP"] == metrics["AP-dog"] == metrics["AR1"] == pytest.approx(100)
    assert list(metrics)[:8] == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(entry["video_id"], entry["category_id"], entry["score"]) for entry in results] == [
        (4, 9, 0.9),
        (4, 9, 0.8),
    ]
    assert results[0]["segmentations"] == [run_lengths(mask) for mask in track(0)]
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        assert archive.namelist() == ["results.json"] and json.loads(archive.read("results.json")) == results


def test_reset_forgets(register) -> None:
    evaluator = YTVISEvaluator(register())
    evaluator.process([{"video_id": 4}], output(0))
    evaluator.reset()
    evaluator.process([{"video_id": 4}], output())
    assert evaluator.evaluate()["segm"]["AP"] == 0


def test_where_no_objects_are_listed_results_are_written_and_nothing_is_measured(register, tmp_path, caplog) -> None:
    evaluator = YTVISEvaluator(register(with_objects=False), str(tmp_path / "out"))
    evaluator.process([{"video_id": 4}], output(0))
    with caplog.at_level(logging.INFO):
        assert evaluator.evaluate() == {}
    assert "submission.zip is for the public server" in caplog.text
    assert (tmp_path / "out" / "submission.zip").is_file()


def test_no_video_at_all_is_said(register, caplog) -> None:
    assert YTVISEvaluator(register()).evaluate() == {}
    assert "No video of 'videos_of_a_test' was evaluated" in caplog.text


def test_a_class_that_the_dataset_lacks_is_named(register) -> None:
    with pytest.raises(ValueError, match="predicted class 7 of video 4 is none of dataset 'videos_of_a_test'"):
        YTVISEvaluator(register()).process([{"video_id": 4}], output(0, label=7))


def test_a_missing_or_cut_off_annotation_file_is_named_before_anything_runs(register, tmp_path) -> None:
    name = register()
    path = tmp_path / "annotations.json"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ValueError, match=r"annotations\.json"):
        YTVISEvaluator(name)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"annotations\.json"):
        YTVISEvaluator(name)


def test_the_config_builds_it_whatever_tasks_of_images_are_on(register, tmp_path) -> None:
    from detectron2.config import get_cfg
    from detectron2.projects.deeplab import add_deeplab_config

    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    assert isinstance(build_evaluator(cfg, register()), YTVISEvaluator)
