"""Records of the data sets with flat folders, from trees in the published layouts."""

import re

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from mask2former.data.datasets.categories import load_categories
from mask2former.data.datasets.splits import all_splits
from mask2former.data.reading import read_class_map
from mask2former.data.record_lists import load_records
from tests.data.datasets.trees import touch, write_json, write_panoptic

ADE20K, VISTAS = "ADEChallengeData2016", "mapillary_vistas"
PANOPTIC = {
    "ade20k_panoptic_val": {
        "panoptic_json": f"{ADE20K}/ade20k_panoptic_val.json",
        "panoptic_root": f"{ADE20K}/ade20k_panoptic_val",
        "image_root": f"{ADE20K}/images/validation",
        "sem_seg_root": f"{ADE20K}/annotations_detectron2/validation",
        "segments": {"ADE_val_00000001": 12, "ADE_val_00000002": 2},
    },
    "coco_2017_val_panoptic_with_sem_seg": {
        "panoptic_json": "coco/annotations/panoptic_val2017.json",
        "panoptic_root": "coco/panoptic_val2017",
        "image_root": "coco/val2017",
        "sem_seg_root": "coco/panoptic_semseg_val2017",
        "segments": {"000000000139": 90, "000000000285": 200},
    },
    "mapillary_vistas_panoptic_val": {
        "panoptic_json": f"{VISTAS}/validation/panoptic/panoptic_2018.json",
        "panoptic_root": f"{VISTAS}/validation/panoptic",
        "image_root": f"{VISTAS}/validation/images",
        "sem_seg_root": f"{VISTAS}/validation/labels",
        "segments": {"_1Gn_xkw7sa_i9GU4mkxxQ": 20, "02_Rtq8": 65},
    },
}
# Contiguous ids of the two segments above; the first is a thing, the second is not.
CLASSES = {
    "ade20k_panoptic_val": (12, 2),
    "coco_2017_val_panoptic_with_sem_seg": (79, 132),
    "mapillary_vistas_panoptic_val": (19, 64),
}
SEMANTIC = {
    "ade20k_sem_seg_train": (f"{ADE20K}/images/training", f"{ADE20K}/annotations_detectron2/training", ".png"),
    "ade20k_full_sem_seg_val": (
        *("ADE20K_2021_17_01/images_detectron2/validation", "ADE20K_2021_17_01/annotations_detectron2/validation"),
        ".tif",
    ),
    "coco_2017_test_stuff_10k_sem_seg": (
        *("coco/coco_stuff_10k/images_detectron2/test", "coco/coco_stuff_10k/annotations_detectron2/test"),
        ".png",
    ),
    "mapillary_vistas_sem_seg_train": (f"{VISTAS}/training/images", f"{VISTAS}/training/labels", ".png"),
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", PANOPTIC)
def test_panoptic_records_are_as_published(root, name) -> None:
    tree = PANOPTIC[name]
    write_panoptic(root, **tree)
    records = DatasetCatalog.get(name)
    things = (True, False)
    for record, stem, category, is_thing in zip(records, tree["segments"], CLASSES[name], things, strict=True):
        segment = {"id": 7, "iscrowd": 0, "area": 4, "bbox": [0, 0, 2, 2]}
        assert record == {
            "file_name": f"{root}/{tree['image_root']}/{stem}.jpg",
            "image_id": int(stem) if name.startswith("coco") else stem,
            "pan_seg_file_name": f"{root}/{tree['panoptic_root']}/{stem}.png",
            "sem_seg_file_name": f"{root}/{tree['sem_seg_root']}/{stem}.png",
            "segments_info": [{**segment, "category_id": category, "isthing": is_thing}],
        }


def test_coco_panoptic_without_semantic_labels_has_no_label_file_in_its_records(root) -> None:
    write_panoptic(root, **PANOPTIC["coco_2017_val_panoptic_with_sem_seg"])
    keys = {"file_name", "image_id", "pan_seg_file_name", "segments_info"}
    assert [set(record) for record in DatasetCatalog.get("coco_2017_val_panoptic")] == [keys, keys]


@pytest.mark.parametrize("name", SEMANTIC)
def test_semantic_records_pair_files_by_stem(root, name) -> None:
    image_root, label_root, suffix = SEMANTIC[name]
    stems = ("a.b", "c")  # a name with a dot is cut at the last one
    touch(root, *(f"{image_root}/{stem}.jpg" for stem in stems), f"{image_root}/notes.txt")
    touch(root, *(f"{label_root}/{stem}{suffix}" for stem in stems))
    assert DatasetCatalog.get(name) == [
        {"file_name": f"{root}/{image_root}/{stem}.jpg", "sem_seg_file_name": f"{root}/{label_root}/{stem}{suffix}"}
        for stem in stems
    ]


def test_labels_of_two_bytes_are_read_as_they_are(root) -> None:
    image_root, label_root, _ = SEMANTIC["ade20k_full_sem_seg_val"]
    touch(root, f"{image_root}/a.jpg", f"{label_root}/a.tif")
    labels_HW = np.array([[0, 846], [255, 65535]], dtype=np.uint16)
    Image.fromarray(labels_HW).save(root / label_root / "a.tif")
    (record,) = DatasetCatalog.get("ade20k_full_sem_seg_val")
    np.testing.assert_array_equal(read_class_map(record["sem_seg_file_name"]), labels_HW)


def test_instances_of_ade20k_have_their_place_among_the_100_as_class(root) -> None:
    categories = [category.to_json() for category in load_categories("ade20k_instance_100")]
    image = {"id": "ADE_val_00000001", "file_name": "ADE_val_00000001.jpg", "height": 4, "width": 6}
    square = {"id": 1, "image_id": image["id"], "category_id": 149, "iscrowd": 0, "bbox": [0, 0, 2, 2], "area": 4}
    square["segmentation"] = {"size": [4, 6], "counts": "02201"}
    content = {"images": [image], "annotations": [square], "categories": categories}
    write_json(root / ADE20K / "ade20k_instance_val.json", content)
    touch(root, f"{ADE20K}/images/validation/ADE_val_00000001.jpg")
    (record,) = DatasetCatalog.get("ade20k_instance_val")
    assert (record["image_id"], record["height"], record["width"]) == (image["id"], 4, 6)
    assert [annotation["category_id"] for annotation in record["annotations"]] == [99]


def test_an_instance_file_of_other_classes_is_refused(root) -> None:
    content = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "bed"}]}
    write_json(root / ADE20K / "ade20k_instance_val.json", content)
    touch(root, f"{ADE20K}/images/validation/ADE_val_00000001.jpg")
    with pytest.raises(ValueError, match=r"ade20k_instance_val\.json cannot be used.*thing_classes"):
        DatasetCatalog.get("ade20k_instance_val")


@pytest.mark.parametrize("split", all_splits(), ids=lambda split: split.name)
def test_a_missing_data_set_is_answered_with_the_first_path_the_tree_and_the_cure(root, split) -> None:
    expected = dict(split.paths)
    if "panoptic_json" in expected:
        expected.pop("json_file", None)  # only an evaluator reads it
    paths = [path.rstrip("/") for path in expected.values() if path is not None]
    with pytest.raises(FileNotFoundError) as caught:
        DatasetCatalog.get(split.name)
    message = str(caught.value)
    first = re.search(r"(\S+) does not exist", message)[1].removeprefix(f"{root}/")
    assert first.rstrip("/") in paths
    assert all(f"  {root}/{path}" in message for path in paths)
    if split.preparation:
        assert f"prepare this one with: {split.preparation.format(root=root)}" in message
    else:
        assert "datasets/README.md" in message


def test_labels_that_were_not_prepared_are_named_with_the_command(root) -> None:
    tree = PANOPTIC["ade20k_panoptic_val"]
    write_panoptic(root, **tree)
    (root / tree["sem_seg_root"] / "ADE_val_00000001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"validation/ADE_val_00000001\.png does not exist.*prepare_ade20k"):
        load_records(("ade20k_panoptic_val",), config_key="DATASETS.TRAIN")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expecting"),
        ("[]", "holds a list"),
        ("{}", "the entry 'annotations' is missing"),
        ('{"annotations": [{"file_name": "a.png"}]}', "the entry 'image_id' is missing"),
        ('{"annotations": [{"file_name": "a.png", "image_id": 1}]}', "the entry 'segments_info' is missing"),
    ],
    ids=["cut off", "a list", "no annotations", "no image id", "no segments"],
)
def test_a_panoptic_file_that_cannot_be_used_is_named(root, content, message) -> None:
    tree = PANOPTIC["mapillary_vistas_panoptic_val"]
    write_panoptic(root, **tree)
    (root / tree["panoptic_json"]).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"panoptic_2018\.json cannot be used.*{message}"):
        DatasetCatalog.get("mapillary_vistas_panoptic_val")
