"""Release 2.0, whose classes are in a file of the data set."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former.data.datasets.categories import load_categories
from tests.data.datasets.trees import vistas_config, write_json, write_panoptic

CLASSES = ("animal--bird", "object--bench", "object--sign--front", "void--dynamic", "void--unlabeled")
V2 = "mapillary_vistas/validation/v2.0"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_json(tmp_path / "mapillary_vistas" / "config_v2.0.json", vistas_config(*CLASSES))
    return tmp_path


def test_classes_come_from_the_file_and_the_unlabeled_one_is_ignored(root) -> None:
    metadata = MetadataCatalog.get("mapillary_vistas_v2_sem_seg_train")
    assert metadata.stuff_classes == ["Bird", "Bench", "Front", "Dynamic"]
    assert metadata.stuff_colors[2] == [2, 4, 6]
    assert metadata.ignore_label == 4
    published = MetadataCatalog.get("mapillary_vistas_sem_seg_train").as_dict()
    assert set(metadata.as_dict()) == {*published, "class_file"}


def test_ids_of_panoptic_files_count_from_one(root) -> None:
    metadata = MetadataCatalog.get("mapillary_vistas_v2_panoptic_train")
    assert metadata.thing_dataset_id_to_contiguous_id == {2: 1, 3: 2}
    assert metadata.stuff_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2, 4: 3}
    assert metadata.thing_classes == metadata.stuff_classes
    assert (metadata.label_divisor, metadata.json_file) == (1000, None)


def test_an_unlabeled_class_in_the_middle_keeps_its_place(root) -> None:
    write_json(root / "mapillary_vistas" / "config_v2.0.json", vistas_config("a", "void--unlabeled", "object--b"))
    metadata = MetadataCatalog.get("mapillary_vistas_v2_sem_seg_train")
    assert metadata.ignore_label == 1 and len(metadata.stuff_classes) == 3


def test_records_of_both_tasks_point_below_the_folder_of_the_release(root) -> None:
    images = "mapillary_vistas/validation/images"
    folders = {"panoptic_root": f"{V2}/panoptic", "image_root": images, "sem_seg_root": f"{V2}/labels"}
    write_panoptic(root, panoptic_json=f"{V2}/panoptic/panoptic_2020.json", segments={"a": 3}, **folders)
    (semantic,) = DatasetCatalog.get("mapillary_vistas_v2_sem_seg_val")
    (panoptic,) = DatasetCatalog.get("mapillary_vistas_v2_panoptic_val")
    files = {"file_name": f"{root}/{images}/a.jpg", "sem_seg_file_name": f"{root}/{V2}/labels/a.png"}
    assert semantic == files
    assert files.items() <= panoptic.items()
    assert [(info["category_id"], info["isthing"]) for info in panoptic["segments_info"]] == [(2, True)]


def test_a_missing_class_file_is_named_when_classes_are_asked_for(root) -> None:
    (root / "mapillary_vistas" / "config_v2.0.json").unlink()
    metadata = MetadataCatalog.get("mapillary_vistas_v2_panoptic_val")
    assert metadata.evaluator_type == "mapillary_vistas_panoptic_seg"
    for key in ("stuff_classes", "ignore_label"):
        with pytest.raises(FileNotFoundError, match=r"config_v2\.0\.json does not exist"):
            metadata.get(key)
    assert metadata.get("no_such_key") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "the entry 'labels' is missing"),
        ({"labels": [{"name": "a"}]}, "the entry 'readable' is missing"),
        (vistas_config("a", "b"), "0 entries named 'void--unlabeled'"),
    ],
    ids=["no labels", "no readable name", "nothing unlabeled"],
)
def test_a_class_file_that_cannot_be_used_is_named(root, content, message) -> None:
    write_json(root / "mapillary_vistas" / "config_v2.0.json", content)
    with pytest.raises(ValueError, match=rf"config_v2\.0\.json cannot be used.*{message}"):
        _ = MetadataCatalog.get("mapillary_vistas_v2_sem_seg_val").stuff_classes


def test_keys_of_release_one_are_the_names_of_its_own_list() -> None:
    categories = load_categories("mapillary_65")
    assert (categories[0].key, categories[-1].key) == ("animal--bird", "void--ego-vehicle")
    touched = {str(category.key).partition("--")[0] for category in categories}
    assert touched == {"animal", "construction", "human", "marking", "nature", "object", "void"}
