import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from pycocotools import mask as coco_mask

from mask2former.data.datasets import cityscapes
from mask2former.data.masks import decode_segmentations, encode_rle
from tests.data.datasets.trees import CITYSCAPES_OBJECTS, write_cityscapes, write_json

CAR, PERSON = 2, 0  # among the 8 classes of instances


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root with a dot, and with the words that labels are found by, in its name."""
    root = tmp_path / "data.v1" / "leftImg8bit.labelIds"
    write_cityscapes(root)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return root


def test_semantic_records_pair_pictures_and_train_ids_by_name(root) -> None:
    folder = root / "cityscapes"
    assert DatasetCatalog.get("cityscapes_fine_sem_seg_train") == [
        {
            "file_name": f"{folder}/leftImg8bit/train/{city}/{stem}_leftImg8bit.png",
            "sem_seg_file_name": f"{folder}/gtFine/train/{city}/{stem}_gtFine_labelTrainIds.png",
        }
        for city, stem in (("aachen", "aachen_000000_000019"), ("bochum", "bochum_000001_000019"))
    ]


def test_panoptic_records_have_train_ids_as_classes(root) -> None:
    folder = root / "cityscapes"
    first, second = DatasetCatalog.get("cityscapes_fine_panoptic_train")
    stem = "aachen_000000_000019"
    segment = {"id": 26000, "category_id": 13, "isthing": True, "area": 9, "bbox": [0, 0, 3, 3], "iscrowd": 0}
    assert first == {
        "file_name": f"{folder}/leftImg8bit/train/aachen/{stem}_leftImg8bit.png",
        "image_id": stem,
        "sem_seg_file_name": f"{folder}/gtFine/train/aachen/{stem}_gtFine_labelTrainIds.png",
        "pan_seg_file_name": f"{folder}/gtFine/cityscapes_panoptic_train/{stem}_gtFine_panoptic.png",
        "segments_info": [segment],
    }
    assert (second["segments_info"][0]["category_id"], second["segments_info"][0]["isthing"]) == (0, False)


def test_a_panoptic_annotation_without_its_picture_is_named(root) -> None:
    next((root / "cityscapes" / "leftImg8bit" / "train" / "bochum").iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match=r"cityscapes_panoptic_train\.json lists 'bochum_000001_000019'"):
        DatasetCatalog.get("cityscapes_fine_panoptic_train")


def test_instances_are_what_can_be_seen_of_them(root) -> None:
    first, second = DatasetCatalog.get("cityscapes_fine_instance_seg_train")
    assert first["image_id"] == "aachen_000000_000019_leftImg8bit.png"
    assert (first["height"], first["width"]) == (24, 32)
    assert first["annotations"] == second["annotations"]
    # The deleted person and the bicycle behind the pole are gone; the group of persons is a crowd.
    kinds = [(annotation["category_id"], annotation["iscrowd"]) for annotation in first["annotations"]]
    assert kinds == [(CAR, 0), (CAR, 0), (PERSON, 1)]
    masks_NHW = decode_segmentations([annotation["segmentation"] for annotation in first["annotations"]], (24, 32))
    assert masks_NHW.sum(axis=0).max() == 1  # nothing lies below anything
    # The pole cuts the first car in two; its license plate stays its own where the pole leaves it visible.
    assert not masks_NHW[0, 4:15, 4:9].any() and masks_NHW[0, 4:15, 2:4].all()
    for annotation, mask_HW in zip(first["annotations"], masks_NHW, strict=True):
        rows, columns = np.nonzero(mask_HW)
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width, y + height) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_masks_are_the_pixels_that_the_official_script_draws(root) -> None:
    official = pytest.importorskip("cityscapesscripts.preparation.json2instanceImg")
    (record, _) = DatasetCatalog.get("cityscapes_fine_instance_seg_train")
    polygons = next((root / "cityscapes" / "gtFine" / "train" / "aachen").glob("*_polygons.json"))
    annotation = official.Annotation()
    annotation.fromJsonFile(str(polygons))
    ids_HW = np.asarray(official.createInstanceImage(annotation, "ids"))
    masks = [ids_HW == label for label in (26000, 26001, 24)]
    assert [annotation["segmentation"] for annotation in record["annotations"]] == [encode_rle(mask) for mask in masks]


@pytest.mark.parametrize("num_objects", [0, 1, 6])
def test_run_lengths_of_all_objects_equal_those_of_each_mask(num_objects) -> None:
    random = np.random.default_rng(num_objects)
    objects_HW = random.integers(0, num_objects + 1, size=(7, 9)).astype(np.int32)
    objects_HW[objects_HW == 2] = 1  # an object that nobody sees
    runs = cityscapes._run_lengths(objects_HW, num_objects)
    masks = [objects_HW == number for number in range(1, num_objects + 1)]
    assert runs == [encode_rle(mask_HW) if mask_HW.any() else None for mask_HW in masks]
    assert sum(int(coco_mask.area(rle)) for rle in runs if rle) == (objects_HW > 0).sum()


def test_several_processes_read_the_same_records(root, monkeypatch, caplog) -> None:
    alone = DatasetCatalog.get("cityscapes_fine_instance_seg_train")
    monkeypatch.setattr(cityscapes, "_PICTURES_PER_PROCESS", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with caplog.at_level(logging.INFO, logger=cityscapes.__name__):
        assert DatasetCatalog.get("cityscapes_fine_instance_seg_train") == alone
    assert "in 2 processes" in caplog.text


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([{"label": "car", "polygon": [[1, 1]]}], "an outline of 'car' has 1 points"),
        ([{"label": "car"}], "the entry 'polygon' is missing"),
    ],
    ids=["one point", "no outline"],
)
def test_damaged_polygons_are_named_with_their_file(root, objects, message) -> None:
    write_cityscapes(root, objects=[*CITYSCAPES_OBJECTS, *objects])
    with pytest.raises(ValueError, match=rf"aachen_000000_000019_gtFine_polygons\.json cannot be used.*{message}"):
        DatasetCatalog.get("cityscapes_fine_instance_seg_train")


def test_labels_that_were_not_prepared_are_named_with_the_command(root) -> None:
    for path in (root / "cityscapes" / "gtFine" / "train").rglob("*_labelTrainIds.png"):
        path.unlink()
    message = r"_gtFine_labelTrainIds\.png does not exist.*python datasets/prepare_cityscapes\.py --root \S*data\.v1"
    for name in ("cityscapes_fine_sem_seg_train", "cityscapes_fine_panoptic_train"):
        with pytest.raises(FileNotFoundError, match=message):
            DatasetCatalog.get(name)


def test_a_panoptic_file_with_another_class_is_refused(root) -> None:
    segments = [{"id": 5, "category_id": 9}]
    annotation = {"image_id": "aachen_000000_000019", "file_name": "a.png", "segments_info": segments}
    write_json(root / "cityscapes/gtFine/cityscapes_panoptic_train.json", {"annotations": [annotation]})
    with pytest.raises(ValueError, match=r"a\.png has a segment of category 9, categories are 7\.\.33 with gaps"):
        DatasetCatalog.get("cityscapes_fine_panoptic_train")
