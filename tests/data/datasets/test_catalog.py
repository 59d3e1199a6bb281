"""Registered names and their metadata, compared with what the original registered (tests/data/datasets.json)."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg, register_coco_instances, register_coco_panoptic

from mask2former.data.datasets import datasets_root, register_all
from mask2former.data.datasets.categories import coco_to_youtube_vis, load_categories
from mask2former.data.datasets.loaders import load_split
from mask2former.data.datasets.splits import all_splits, split_categories
from mask2former.data.record_lists import load_records
from tests.data.datasets.trees import touch, write_json

PUBLISHED = json.loads((Path(__file__).parent.parent / "datasets.json").read_text(encoding="utf-8"))
# Entries that the original lacks: semantic labels that its loaders knew without saying so, and colors to draw with.
ADDED = {
    "ade20k_panoptic": {"sem_seg_root"},
    "mapillary_vistas_panoptic": {"sem_seg_root"},
    "cityscapes_fine_sem_seg": {"thing_colors", "stuff_colors"},
    "cityscapes_fine_instance_seg": {"thing_colors", "stuff_colors"},
}


@pytest.fixture
def kept_catalogs():
    """Puts both catalogs back as they were."""
    records, metadata = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    yield
    for catalog, before in ((DatasetCatalog, records), (MetadataCatalog, metadata)):
        catalog.data.clear()
        catalog.data.update(before)


@pytest.mark.parametrize("name", PUBLISHED["datasets"])
def test_metadata_is_as_published(name, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    expected = PUBLISHED["datasets"][name]
    found = MetadataCatalog.get(name).as_dict()
    added = ADDED.get(name.rpartition("_")[0], set())
    assert set(found) == {"name", *expected["metadata_keys"], *added}
    for key in ("evaluator_type", "ignore_label", "label_divisor"):
        assert found.get(key) == expected.get(key), key
    assert {key: found[key] for key in expected["paths"]} == {
        key: path and f"/data/{path}" for key, path in expected["paths"].items()
    }
    for kind in ("thing", "stuff"):
        names, ids = found.get(f"{kind}_classes"), found.get(f"{kind}_dataset_id_to_contiguous_id")
        assert (names and len(names)) == expected.get(f"num_{kind}_classes")
        extremes = ids and [len(ids), min(ids), max(ids), min(ids.values()), max(ids.values())]
        assert extremes == expected.get(f"{kind}_ids")


@pytest.mark.parametrize("name", PUBLISHED["id_maps"])
def test_ids_of_a_data_set_have_the_published_contiguous_ids(name) -> None:
    for kind, (dataset_ids, contiguous_ids) in PUBLISHED["id_maps"][name].items():
        ids = MetadataCatalog.get(name).get(f"{kind}_dataset_id_to_contiguous_id")
        assert ids == dict(zip(dataset_ids, contiguous_ids, strict=True))


def test_every_published_name_that_a_config_can_mean_is_in_our_table() -> None:
    names = [split.name for split in all_splits()]
    assert len(set(names)) == len(names)
    own = {name for name in names if name.startswith(("digits_", "mapillary_vistas_v2_", "coco_2017_train_as_"))}
    assert set(names) - own == set(PUBLISHED["datasets"])
    assert all(isinstance(DatasetCatalog.data[name], partial) for name in names)


def test_the_scripts_that_messages_name_exist() -> None:
    root = Path(__file__).parents[3]
    scripts = {script for split in all_splits() for script in re.findall(r"python (\S+)", split.preparation)}
    assert len(scripts) == 9
    assert all((root / script).is_file() for script in scripts)


def test_the_last_label_of_mapillary_vistas_is_ignored_and_no_class() -> None:
    metadata = MetadataCatalog.get("mapillary_vistas_sem_seg_val")
    assert metadata.ignore_label == len(metadata.stuff_classes) == 65
    assert metadata.stuff_classes[-1] == "Ego Vehicle"


def test_class_lists_of_coco_cover_things_and_then_stuff() -> None:
    metadata = MetadataCatalog.get("coco_2017_val_panoptic")
    assert metadata.thing_classes == MetadataCatalog.get("coco_2017_val").thing_classes == metadata.stuff_classes[:80]
    assert (metadata.thing_classes[0], metadata.thing_classes[-1]) == ("person", "toothbrush")
    assert len(metadata.thing_colors) == 80 and len(metadata.stuff_colors) == 133


def test_the_root_of_data_sets_is_asked_for_when_a_path_is_needed(monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/sets")
    assert MetadataCatalog.get("ade20k_sem_seg_val").image_root.startswith(datasets_root())
    assert datasets_root() == str(Path.home() / "sets")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert MetadataCatalog.get("coco_2017_val").json_file == "datasets/coco/annotations/instances_val2017.json"


def test_registering_with_a_root_holds_for_names_of_detectron2_too(kept_catalogs, tmp_path) -> None:
    register_all(str(tmp_path))
    for name in ("coco_2017_val", "cityscapes_fine_panoptic_val", "ytvis_2019_train"):
        assert MetadataCatalog.get(name).image_root.startswith(str(tmp_path))


def test_the_root_may_be_a_path_below_the_home_folder(kept_catalogs) -> None:
    register_all(Path("~/sets"))
    with pytest.raises(FileNotFoundError, match=rf"{Path.home()}/sets/ytvis_2019/train/JPEGImages does not exist"):
        DatasetCatalog.get("ytvis_2019_train")


def test_a_name_that_somebody_has_replaced_stays_his(kept_catalogs, tmp_path) -> None:
    # Once with Detectron2's function and own files, once with a function of his own.
    for name in ("coco_2017_val", "ade20k_sem_seg_val", "digits_semantic_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances("coco_2017_val", {}, str(tmp_path / "mine.json"), str(tmp_path))
    DatasetCatalog.register("ade20k_sem_seg_val", lambda: [{"file_name": "mine.png"}])
    DatasetCatalog.register("digits_semantic_val", [{"file_name": "mine.png"}].copy)
    register_all(str(tmp_path / "elsewhere"))
    assert MetadataCatalog.get("coco_2017_val").json_file == str(tmp_path / "mine.json")
    assert DatasetCatalog.get("ade20k_sem_seg_val") == DatasetCatalog.get("digits_semantic_val")
    assert DatasetCatalog.get("ade20k_sem_seg_val") == [{"file_name": "mine.png"}]


def test_a_name_as_detectron2_registers_it_becomes_ours(kept_catalogs, monkeypatch) -> None:
    root = "/where/detectron2/was/imported"
    monkeypatch.setattr("detectron2.data.datasets.builtin._root", root, raising=False)
    for name in ("ade20k_sem_seg_val", "ade20k_sem_seg_train"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        part = "validation" if name.endswith("val") else "training"
        folders = {
            "image_root": f"{root}/ADEChallengeData2016/images/{part}",
            "sem_seg_root": f"{root}/ADEChallengeData2016/annotations_detectron2/{part}",
        }
        load = lambda folders=folders: load_sem_seg(folders["sem_seg_root"], folders["image_root"])  # noqa: E731
        load.__module__ = "detectron2.data.datasets.builtin"
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(**folders)
    register_all()
    assert DatasetCatalog.data["ade20k_sem_seg_val"].func is load_split
    assert len(MetadataCatalog.get("ade20k_sem_seg_val").stuff_colors) == 150


def test_ones_own_coco_and_panoptic_data_sets_work_beside_ours(kept_catalogs, tmp_path) -> None:
    image = {"id": 1, "file_name": "a.jpg", "height": 8, "width": 8}
    square = {"id": 1, "image_id": 1, "category_id": 5, "iscrowd": 0, "bbox": [0, 0, 4, 4], "area": 16}
    square["segmentation"] = [[0, 0, 4, 0, 4, 4, 0, 4]]
    instances = write_json(
        tmp_path / "instances.json",
        {"images": [image], "annotations": [square], "categories": [{"id": 5, "name": "cup"}]},
    )
    segments = [{"id": 1, "category_id": 9, "iscrowd": 0}]
    panoptic = write_json(
        tmp_path / "panoptic.json",
        {"images": [image], "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}]},
    )
    touch(tmp_path, "images/a.jpg", "panoptic/a.png")
    register_coco_instances("cups", {}, str(instances), str(tmp_path / "images"))
    ids = {"thing_dataset_id_to_contiguous_id": {9: 0}, "stuff_dataset_id_to_contiguous_id": {}}
    names = (str(tmp_path / "images"), str(tmp_path / "panoptic"), str(panoptic))
    register_coco_panoptic("cups_panoptic", {"thing_classes": ["cup"], **ids}, *names)
    register_all()
    (record,) = load_records(("cups",), config_key="DATASETS.TRAIN")
    assert [annotation["category_id"] for annotation in record["annotations"]] == [0]
    assert MetadataCatalog.get("cups").thing_classes == ["cup"]
    (record,) = load_records(("cups_panoptic",), config_key="DATASETS.TRAIN")
    assert record["segments_info"] == [{"id": 1, "category_id": 0, "iscrowd": 0, "isthing": True}]


@pytest.mark.parametrize(("year", "num_classes"), [(2019, 19), (2021, 21)])
def test_coco_joins_youtube_vis_under_the_names_of_its_classes(tmp_path, monkeypatch, year, num_classes) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    names = {c.id: c.name for c in split_categories("coco_panoptic") if c.is_thing}
    square = {"iscrowd": 0, "bbox": [0, 0, 4, 4], "area": 16, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
    images = [{"id": place, "file_name": "a.jpg", "height": 8, "width": 8} for place in names]
    objects = [{**square, "id": place, "image_id": place, "category_id": place} for place in names]
    content = {"images": images, "annotations": objects, "categories": [{"id": i, "name": n} for i, n in names.items()]}
    write_json(tmp_path / "coco" / "annotations" / "instances_train2017.json", content)
    touch(tmp_path, "coco/train2017/a.jpg")
    name = f"coco_2017_train_as_ytvis_{year}"
    classes = MetadataCatalog.get(f"ytvis_{year}_train").thing_classes
    assert MetadataCatalog.get(name).thing_classes == classes
    found = {names[r["image_id"]]: classes[r["annotations"][0]["category_id"]] for r in DatasetCatalog.get(name)}
    assert len(found) == num_classes and len(set(found.values())) == num_classes
    assert found["car"] == ("sedan" if year == 2019 else "car") and found["tennis racket"] == "tennis_racket"
    assert "mouse" not in found, "a computer mouse is no animal"


def test_every_name_of_the_table_between_coco_and_youtube_vis_is_a_class() -> None:
    coco = {category.name for category in split_categories("coco_panoptic") if category.is_thing}
    youtube = {category.name for year in (2019, 2021) for category in load_categories(f"ytvis_{year}")}
    assert set(coco_to_youtube_vis()) <= coco
    assert {name for names in coco_to_youtube_vis().values() for name in names} <= youtube
