"""COCO: semantic labels from panoptic ones."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from mask2former.data.masks import id_to_rgb
from mask2former.data.preparation.coco_semantic import look_up, prepare_coco_semantic
from mask2former.data.preparation.jobs import Outcome
from tests.data.preparation.trees import read_picture, write_picture, write_times

# Two persons (COCO's category 1), a toothbrush (90), a tree (184) and rug-merged (200, the last of COCO's list).
IDS = [
    [0, 7, 7, 3_000_000],
    [65_536, 65_536, 999, 16_777_215],
]
SEGMENTS = {7: 1, 3_000_000: 90, 65_536: 184, 16_777_215: 200}


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        write_picture(tmp_path / f"coco/panoptic_{split}2017/000000000009.png", id_to_rgb(np.array(IDS)))
        write_picture(tmp_path / f"coco/{split}2017/000000000009.jpg", np.zeros((2, 4, 3)))
        _write_json(tmp_path, split, "000000000009.png", SEGMENTS)
        instances = tmp_path / f"coco/annotations/instances_{split}2017.json"
        instances.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    return tmp_path


def _write_json(root, split, file_name, segments):
    annotation = {
        "image_id": 9,
        "file_name": file_name,
        "segments_info": [{"id": number, "category_id": category} for number, category in segments.items()],
    }
    path = root / f"coco/annotations/panoptic_{split}2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"annotations": [annotation]}))


def test_classes_are_places_in_the_list_of_133_and_void_is_255(root):
    assert prepare_coco_semantic(root, num_workers=1) == Outcome(2, 0)
    # 999 belongs to no segment. Toothbrush is the last of the 80 things, tree-merged the class 116.
    expected = [[255, 0, 0, 79], [116, 116, 255, 132]]
    for split in ("train", "val"):
        assert read_picture(root / f"coco/panoptic_semseg_{split}2017/000000000009.png") == expected


def test_ids_that_are_not_known_become_void():
    ids = np.array([[0, 1, 2, 3, 4]], dtype=np.int32)
    assert look_up(ids, {3: 30, 1: 10}).tolist() == [[255, 10, 255, 30, 255]]
    assert look_up(ids, {}).tolist() == [[255] * 5]


def test_a_second_run_writes_nothing(root):
    prepare_coco_semantic(root, num_workers=1)
    times = write_times(root)
    assert prepare_coco_semantic(root, num_workers=1) == Outcome(0, 2)
    assert write_times(root) == times


@pytest.mark.parametrize("missing", ["annotations/panoptic_train2017.json", "panoptic_val2017"])
def test_a_missing_input_is_named_with_the_tree(root, missing):
    (root / "coco" / missing).rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError) as error:
        prepare_coco_semantic(root, num_workers=1)
    assert str(error.value).startswith(f"{root / 'coco' / missing} does not exist.")
    assert f"{root}/coco/panoptic_{{train,val}}2017/*.png" in str(error.value)


def test_a_picture_that_only_the_json_file_knows_is_named(root):
    _write_json(root, "val", "000000000010.png", {})
    with pytest.raises(FileNotFoundError, match=r"panoptic_val2017/000000000010\.png does not exist, but .*\.json"):
        prepare_coco_semantic(root, splits=("val",), num_workers=1)


@pytest.mark.parametrize("number", [-1, 1 << 24, 1 << 40])
def test_a_segment_id_that_no_pixel_can_have_is_named(root, number):
    _write_json(root, "val", "000000000009.png", {number: 1})
    with pytest.raises(ValueError, match=rf"panoptic_val2017.json .* segment id {number} is no color"):
        prepare_coco_semantic(root, splits=("val",), num_workers=1)


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_json_file_is_named(root, content):
    path = root / "coco/annotations/panoptic_val2017.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path} is cut off or no panoptic file of COCO"):
        prepare_coco_semantic(root, splits=("val",), num_workers=1)


def test_a_category_that_coco_does_not_have_is_refused(root):
    _write_json(root, "val", "000000000009.png", {7: 12})
    with pytest.raises(ValueError, match="KeyError 12; its segments must have the 133 categories"):
        prepare_coco_semantic(root, splits=("val",), num_workers=1)


def test_the_registered_name_reads_what_was_prepared(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    prepare_coco_semantic(root, num_workers=1)
    (record,) = DatasetCatalog.get("coco_2017_val_panoptic_with_sem_seg")
    assert read_picture(record["sem_seg_file_name"])[1][0] == 116
    assert [segment["category_id"] for segment in record["segments_info"]] == [0, 79, 116, 132]
