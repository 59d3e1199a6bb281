"""Cityscapes: one picture at a time gives what the official scripts make of the whole data set."""

import json
import shutil

import numpy as np
import pytest
from cityscapesscripts.preparation import createTrainIdLabelImgs
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from detectron2.data import DatasetCatalog

from mask2former.data.preparation.cityscapes import prepare_cityscapes
from mask2former.data.preparation.jobs import Outcome
from tests.data.preparation.trees import read_picture, write_picture, write_times

PICTURES = {
    "train": ["aachen/aachen_000000_000019", "aachen/aachen_000001_000019", "bochum/bochum_000000_000313"],
    "val": ["lindau/lindau_000000_000019"],
    "test": ["berlin/berlin_000000_000019"],
}
# Labels and their ids: road 7 (train id 0), car 26 (13), caravan 29 (none), "cargroup" draws as car.
OBJECTS = [("road", [0, 0, 7, 5]), ("car", [1, 1, 2, 2]), ("cargroup", [4, 1, 5, 2]), ("caravan", [6, 4, 7, 5])]


def polygon(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def drawn(values: list[int], background: int) -> np.ndarray:
    picture = np.full((6, 8), background)
    for value, (_, (left, top, right, bottom)) in zip(values, OBJECTS, strict=True):
        picture[top : bottom + 1, left : right + 1] = value
    return picture


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data.sets"  # Detectron2 cuts paths at their first dot
    for split, names in PICTURES.items():
        for name in names:
            labels = root / f"cityscapes/gtFine/{split}/{name}_gtFine"
            write_picture(
                labels.with_name(f"{labels.name}_instanceIds.png"), drawn([7, 26000, 26, 29000], 0), np.uint16
            )
            objects = [{"label": label, "polygon": polygon(*box)} for label, box in OBJECTS]
            content = {"imgHeight": 6, "imgWidth": 8, "objects": objects}
            labels.with_name(f"{labels.name}_polygons.json").write_text(json.dumps(content))
            write_picture(root / f"cityscapes/leftImg8bit/{split}/{name}_leftImg8bit.png", np.zeros((6, 8, 3)))
    return root


@pytest.fixture
def folder(root):
    return root / "cityscapes/gtFine"


def test_labels_are_drawn_as_train_ids(root, folder):
    assert prepare_cityscapes(root, num_workers=1) == Outcome(10, 0)
    for split, names in PICTURES.items():
        for name in names:
            labels = read_picture(folder / f"{split}/{name}_gtFine_labelTrainIds.png")
            assert labels == drawn([0, 13, 13, 255], 255).tolist()


def test_panoptic_segments_have_the_ids_of_the_label_table_and_groups_are_crowds(root, folder):
    prepare_cityscapes(root, num_workers=1)
    content = json.loads((folder / "cityscapes_panoptic_val.json").read_text())
    assert content["images"] == [
        {
            "id": "lindau_000000_000019",
            "file_name": "lindau_000000_000019_gtFine_leftImg8bit.png",
            "width": 8,
            "height": 6,
        }
    ]
    (annotation,) = content["annotations"]
    assert annotation == {
        "image_id": "lindau_000000_000019",
        "file_name": "lindau_000000_000019_gtFine_panoptic.png",
        "segments_info": [
            {"id": 7, "category_id": 7, "area": 36, "bbox": [0, 0, 8, 6], "iscrowd": 0},
            {"id": 26, "category_id": 26, "area": 4, "bbox": [4, 1, 2, 2], "iscrowd": 1},
            {"id": 26000, "category_id": 26, "area": 4, "bbox": [1, 1, 2, 2], "iscrowd": 0},
        ],
    }
    assert len(content["categories"]) == 19
    picture = np.array(read_picture(folder / f"cityscapes_panoptic_val/{annotation['file_name']}"))
    assert (picture @ [1, 256, 65536] == drawn([7, 26000, 26, 0], 0)).all()


def test_the_official_scripts_give_the_same_for_the_whole_data_set(root, folder, tmp_path, monkeypatch):
    official = tmp_path / "official/gtFine"
    shutil.copytree(folder, official)
    prepare_cityscapes(root, num_workers=1)
    convert2panoptic(str(official), setNames=list(PICTURES))
    monkeypatch.setenv("CITYSCAPES_DATASET", str(official.parent))
    createTrainIdLabelImgs.main()
    assert write_times(folder).keys() == write_times(official).keys()
    for name in write_times(folder):
        ours, theirs = folder / name, official / name
        if ours.suffix == ".json":
            assert json.loads(ours.read_text()) == json.loads(theirs.read_text())
        else:
            assert ours.read_bytes() == theirs.read_bytes()


def test_a_second_run_writes_nothing(root):
    prepare_cityscapes(root, num_workers=1)
    times = write_times(root)
    assert prepare_cityscapes(root, num_workers=1) == Outcome(0, 10)
    assert write_times(root) == times


def test_a_label_that_the_scripts_do_not_know_is_reported_with_the_file(root, folder, capsys):
    path = folder / f"train/{PICTURES['train'][1]}_gtFine_polygons.json"
    good = path.read_text()
    path.write_text(good.replace("caravan", "spaceship"))
    with pytest.raises(ValueError, match=rf"{path}: ERROR: Label 'spaceship' not known"):
        prepare_cityscapes(root, num_workers=1)
    assert capsys.readouterr().out == ""
    path.write_text(good)
    assert prepare_cityscapes(root, num_workers=1) == Outcome(9, 1)


def test_a_damaged_instance_picture_is_named_and_the_next_run_continues(root, folder):
    path = folder / f"train/{PICTURES['train'][1]}_gtFine_instanceIds.png"
    good = path.read_bytes()
    path.write_bytes(good[:30])
    with pytest.raises(OSError, match=str(path)):
        prepare_cityscapes(root, num_workers=1)
    assert not (folder / "cityscapes_panoptic_train.json").exists()
    path.write_bytes(good)
    assert prepare_cityscapes(root, num_workers=1) == Outcome(6, 4)  # 3 semantic pictures and 1 panoptic one were there


@pytest.mark.parametrize("missing", ["", "val"])
def test_a_missing_folder_is_named_with_the_tree(root, folder, missing):
    (folder / missing).rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError) as error:
        prepare_cityscapes(root, num_workers=1)
    assert str(error.value).startswith(f"{folder / (missing or 'train')} does not exist.")
    assert f"{folder}/{{train,val,test}}/{{city}}/*_gtFine_instanceIds.png" in str(error.value)


def test_a_folder_without_labels_is_named(root, folder):
    shutil.rmtree(folder / "val/lindau")
    with pytest.raises(FileNotFoundError, match=r"val holds no \{city\}/\*_gtFine_polygons\.json"):
        prepare_cityscapes(root, num_workers=1)


@pytest.mark.parametrize("name", ["cityscapes_fine_sem_seg_train", "cityscapes_fine_panoptic_train"])
def test_the_registered_names_read_what_was_prepared(root, monkeypatch, name):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    prepare_cityscapes(root, num_workers=1)
    records = DatasetCatalog.get(name)
    assert len(records) == 3
    assert read_picture(records[0]["sem_seg_file_name"]) == drawn([0, 13, 13, 255], 255).tolist()
