"""ADE20K: semantic, instance and panoptic labels of hand-made pictures."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from pycocotools import mask as coco_mask

from mask2former.data.datasets.categories import ade20k_instance_ids, load_categories
from mask2former.data.masks import rgb_to_id
from mask2former.data.preparation.ade20k_instance import prepare_ade20k_instance
from mask2former.data.preparation.ade20k_panoptic import prepare_ade20k_panoptic, segment_ids
from mask2former.data.preparation.ade20k_semantic import prepare_ade20k_semantic
from mask2former.data.preparation.jobs import Outcome
from tests.data.preparation.trees import read_picture, write_picture, write_times

# Values of annotations/: wall 1, floor 4, bed 8 and person 13 are 0, 3, 7 and 12 in our tables; bed and person are the
# instance classes 1 and 4.
SEMANTIC = [
    [1, 1, 1, 4, 4, 0],
    [1, 8, 8, 4, 4, 0],
    [1, 8, 8, 8, 13, 0],
]
INSTANCE_CLASSES = [
    [0, 0, 0, 0, 0, 0],
    [0, 1, 1, 1, 1, 4],
    [0, 1, 1, 0, 0, 0],
]
INSTANCES = [
    [0, 0, 0, 0, 0, 0],
    [0, 7, 7, 2, 2, 9],
    [0, 7, 7, 0, 0, 0],
]
PICTURES = {"train": ["ADE_train_00000001", "ADE_train_00000002"], "val": ["ADE_val_00000001"]}
FOLDERS = {"train": "training", "val": "validation"}


@pytest.fixture
def root(tmp_path):
    """A data set whose second training picture has nothing but an unknown class."""
    folder = tmp_path / "ADEChallengeData2016"
    for split, stems in PICTURES.items():
        for stem in stems:
            is_empty = stem.endswith("2")
            semantic = np.zeros((2, 3)) if is_empty else np.array(SEMANTIC)
            channels = [INSTANCE_CLASSES, INSTANCES, np.zeros_like(INSTANCES)]
            instances = np.zeros((2, 3, 3)) if is_empty else np.stack(channels, axis=-1)
            write_picture(folder / "annotations" / FOLDERS[split] / f"{stem}.png", semantic)
            write_picture(folder / "annotations_instance" / FOLDERS[split] / f"{stem}.png", instances)
            write_picture(folder / "images" / FOLDERS[split] / f"{stem}.jpg", np.zeros((*semantic.shape, 3)))
    return tmp_path


@pytest.fixture
def folder(root):
    return root / "ADEChallengeData2016"


def test_the_red_value_of_an_instance_picture_is_the_place_in_the_instance_table():
    scene_parse_ids = {instance: scene for instance, scene, _ in ade20k_instance_ids()}
    table = load_categories("ade20k_instance_100")
    assert {place: category.id + 1 for place, category in enumerate(table, start=1)} == scene_parse_ids


def test_semantic_labels_are_one_less_and_unknown_becomes_void(root, folder):
    assert prepare_ade20k_semantic(root, num_workers=1) == Outcome(3, 0)
    expected = [[0, 0, 0, 3, 3, 255], [0, 7, 7, 3, 3, 255], [0, 7, 7, 7, 12, 255]]
    assert read_picture(folder / "annotations_detectron2/training/ADE_train_00000001.png") == expected
    assert read_picture(folder / "annotations_detectron2/validation/ADE_val_00000001.png") == expected
    assert read_picture(folder / "annotations_detectron2/training/ADE_train_00000002.png") == [[255] * 3] * 2


def test_a_label_beyond_the_classes_is_refused_with_the_file(root, folder):
    path = folder / "annotations/training/ADE_train_00000002.png"
    write_picture(path, [[0, 151]])
    with pytest.raises(ValueError, match=rf"{path} must hold labels 0\.\.150 .* its largest is 151"):
        prepare_ade20k_semantic(root, num_workers=1)


def test_a_damaged_picture_is_named(root, folder):
    path = folder / "annotations/training/ADE_train_00000002.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=f"{path} "):
        prepare_ade20k_semantic(root, num_workers=1)


def test_instances_are_coco_annotations_with_the_published_fields(root, folder):
    assert prepare_ade20k_instance(root, num_workers=1) == Outcome(3, 0)
    content = json.loads((folder / "ade20k_instance_train.json").read_text())
    assert content["images"] == [
        {"id": "ADE_train_00000001", "file_name": "ADE_train_00000001.jpg", "width": 6, "height": 3},
        {"id": "ADE_train_00000002", "file_name": "ADE_train_00000002.jpg", "width": 3, "height": 2},
    ]
    assert len(content["categories"]) == 100
    assert content["categories"][:2] == [{"id": 7, "name": "bed"}, {"id": 8, "name": "windowpane"}]
    masks = [coco_mask.decode(annotation.pop("segmentation")).tolist() for annotation in content["annotations"]]
    common = {"image_id": "ADE_train_00000001", "iscrowd": 0}
    assert content["annotations"] == [
        {"id": 1, **common, "category_id": 7, "bbox": [3, 1, 2, 1], "area": 2},
        {"id": 2, **common, "category_id": 7, "bbox": [1, 1, 2, 2], "area": 4},
        {"id": 3, **common, "category_id": 12, "bbox": [5, 1, 1, 1], "area": 1},
    ]
    assert masks == [(np.array(INSTANCES) == instance).astype(int).tolist() for instance in (2, 7, 9)]
    validation = json.loads((folder / "ade20k_instance_val.json").read_text())
    assert [annotation["id"] for annotation in validation["annotations"]] == [1, 2, 3]


@pytest.mark.parametrize(("red", "found"), [([1, 2], r"\[1, 2\]"), ([0, 0], r"\[0\]"), ([101, 101], r"\[101\]")])
def test_an_instance_without_exactly_one_class_is_refused(root, folder, red, found):
    path = folder / "annotations_instance/training/ADE_train_00000002.png"
    write_picture(path, [[[red[0], 5, 0], [red[1], 5, 0]]])
    with pytest.raises(ValueError, match=rf"{path}: instance 5 \(green\) must have one class .* has {found}"):
        prepare_ade20k_instance(root, num_workers=1)


def test_panoptic_segments_describe_the_finished_map(root, folder):
    assert prepare_ade20k_panoptic(root, num_workers=1) == Outcome(3, 0)
    content = json.loads((folder / "ade20k_panoptic_train.json").read_text())
    table = load_categories("ade20k_150")
    assert content["categories"] == [
        {"id": place, "name": category.name, "isthing": int(category.is_thing), "color": list(category.rgb)}
        for place, category in enumerate(table)
    ]
    first, second = content["annotations"]
    assert {key: first[key] for key in ("image_id", "file_name")} == {
        "image_id": "ADE_train_00000001",
        "file_name": "ADE_train_00000001.png",
    }
    assert second["segments_info"] == []
    assert content["images"][0] == {
        "id": "ADE_train_00000001",
        "file_name": "ADE_train_00000001.jpg",
        "width": 6,
        "height": 3,
    }
    identifiers = [segment.pop("id") for segment in first["segments_info"]]
    # Floor lost the two pixels of its second row to a bed, which was labeled there as an instance only.
    assert first["segments_info"] == [
        {"category_id": 0, "area": 5, "bbox": [0, 0, 3, 3], "iscrowd": 0},
        {"category_id": 3, "area": 2, "bbox": [3, 0, 2, 1], "iscrowd": 0},
        {"category_id": 7, "area": 2, "bbox": [3, 1, 2, 1], "iscrowd": 0},
        {"category_id": 7, "area": 4, "bbox": [1, 1, 2, 2], "iscrowd": 0},
        {"category_id": 12, "area": 1, "bbox": [5, 1, 1, 1], "iscrowd": 0},
    ]
    wall, floor, bed, other_bed, person = identifiers
    assert [wall, floor, bed, person] == [_id_of_color(table[index].rgb) for index in (0, 3, 7, 12)]
    # The last row's thing pixels without an instance are void.
    expected = [
        [wall, wall, wall, floor, floor, 0],
        [wall, other_bed, other_bed, bed, bed, person],
        [wall, other_bed, other_bed, 0, 0, 0],
    ]
    written = np.array(read_picture(folder / "ade20k_panoptic_train/ADE_train_00000001.png"))
    assert rgb_to_id(written).tolist() == expected


def test_stuff_that_things_cover_completely_is_left_out(root, folder):
    write_picture(folder / "annotations/validation/ADE_val_00000001.png", [[1, 4]])
    write_picture(folder / "annotations_instance/validation/ADE_val_00000001.png", [[[1, 1, 0], [0, 0, 0]]])
    prepare_ade20k_panoptic(root, splits=("val",), num_workers=1)
    (annotation,) = json.loads((folder / "ade20k_panoptic_val.json").read_text())["annotations"]
    assert [segment["category_id"] for segment in annotation["segments_info"]] == [3, 7]


def test_pictures_of_different_sizes_are_refused(root, folder):
    path = folder / "annotations_instance/validation/ADE_val_00000001.png"
    write_picture(path, np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match=rf"{path} has \(height, width\) \(2, 2\)"):
        prepare_ade20k_panoptic(root, num_workers=1)


def test_segment_ids_differ_within_a_picture_and_depend_on_its_name_only():
    table = load_categories("ade20k_150")
    classes = [label for label, category in enumerate(table) if not category.is_thing] + [7] * 200 + [12] * 30
    ids = segment_ids("a picture", classes, table)
    assert len(set(ids)) == len(classes) and 0 not in ids and max(ids) < 2**24
    assert ids == segment_ids("a picture", classes, table)
    assert ids != segment_ids("another picture", classes, table)
    beds = [
        (number & 255, number >> 8 & 255, number >> 16)
        for number, label in zip(ids, classes, strict=True)
        if label == 7
    ]
    assert beds[0] == table[7].rgb
    assert np.abs(np.array(beds) - table[7].rgb).max() <= 30
    stuff_colors = {category.rgb for category in table if not category.is_thing}
    assert stuff_colors.isdisjoint(beds)


@pytest.mark.parametrize("prepare", [prepare_ade20k_semantic, prepare_ade20k_instance, prepare_ade20k_panoptic])
def test_a_second_run_writes_nothing(root, prepare):
    assert prepare(root, num_workers=2) == Outcome(3, 0)
    times = write_times(root)
    assert prepare(root, num_workers=2) == Outcome(0, 3)
    assert write_times(root) == times


def test_a_panoptic_run_that_fails_in_the_middle_continues_with_the_same_ids(root, folder):
    prepare_ade20k_panoptic(root, num_workers=1)
    complete = {name: (folder / name).read_bytes() for name in write_times(folder) if "panoptic" in name}
    for name in complete:
        (folder / name).unlink()
    path = folder / "annotations_instance/training/ADE_train_00000002.png"
    good = path.read_bytes()
    path.write_bytes(good[:40])
    with pytest.raises(ValueError, match=str(path)):
        prepare_ade20k_panoptic(root, num_workers=1)
    assert not (folder / "ade20k_panoptic_train.json").exists()
    path.write_bytes(good)
    assert prepare_ade20k_panoptic(root, num_workers=1) == Outcome(2, 1)
    assert {name: (folder / name).read_bytes() for name in complete} == complete


@pytest.mark.parametrize(
    ("prepare", "missing"),
    [
        (prepare_ade20k_semantic, "annotations/validation"),
        (prepare_ade20k_instance, "annotations_instance/training"),
        (prepare_ade20k_panoptic, "annotations_instance/validation"),
    ],
)
def test_a_missing_folder_is_named_with_the_tree(root, folder, prepare, missing):
    (folder / missing).rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError) as error:
        prepare(root, num_workers=1)
    assert str(error.value).startswith(f"{folder / missing} does not exist.")
    assert f"{folder}/{missing.split('/')[0]}/{{training,validation}}/*.png" in str(error.value)


def test_a_single_split_needs_only_its_own_folders(root, folder):
    (folder / "annotations/training").rename(folder / "elsewhere")
    assert prepare_ade20k_semantic(root, splits=("val",), num_workers=1) == Outcome(1, 0)


def test_the_registered_names_read_what_was_prepared(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    prepare_ade20k_semantic(root, num_workers=1)
    prepare_ade20k_instance(root, num_workers=1)
    prepare_ade20k_panoptic(root, num_workers=1)
    assert len(DatasetCatalog.get("ade20k_sem_seg_train")) == 2
    (record,) = DatasetCatalog.get("ade20k_panoptic_val")
    assert record["image_id"] == "ADE_val_00000001"
    assert [(segment["category_id"], segment["isthing"]) for segment in record["segments_info"]] == [
        (0, False),
        (3, False),
        (7, True),
        (7, True),
        (12, True),
    ]
    (record,) = DatasetCatalog.get("ade20k_instance_val")
    assert [annotation["category_id"] for annotation in record["annotations"]] == [0, 0, 3]


def _id_of_color(color: tuple[int, int, int]) -> int:
    return color[0] + 256 * color[1] + 65536 * color[2]
