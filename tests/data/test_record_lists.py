"""Records of registered data sets: what is refused with which words, and which data sets go together."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask2former.config import load_config
from mask2former.data import BrokenSampleError
from mask2former.data.datasets import register_all
from mask2former.data.datasets.categories import load_categories
from mask2former.data.record_lists import load_datasets, load_records
from mask2former.data.repeat_factors import repeat_factors
from mask2former.registry import DATASET_MAPPER_REGISTRY


def register(name: str, records: list, **metadata) -> None:
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(**metadata)


@pytest.fixture
def own_datasets():
    """Names that a test registers; removed afterwards."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_no_data_set_is_an_error_with_the_key() -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        load_records((), config_key="DATASETS.TRAIN")


def test_an_unknown_data_set_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.TEST: data set 'digits' is not registered; .*digits_panoptic_val"):
        load_records(("digits",), config_key="DATASETS.TEST")


def test_an_empty_data_set_is_an_error(own_datasets) -> None:
    register("nothing", [])
    with pytest.raises(ValueError, match=r"data set 'nothing' has no pictures"):
        load_records(("nothing",), config_key="DATASETS.TRAIN")


def test_a_data_set_with_nothing_but_crowds_is_an_error_when_those_are_filtered(own_datasets) -> None:
    register("crowds", [{"annotations": [{"iscrowd": 1}]}, {"annotations": []}])
    assert len(load_records(("crowds",), config_key="KEY")) == 2
    with pytest.raises(ValueError, match="no picture of crowds has an annotation"):
        load_records(("crowds",), config_key="DATASETS.TRAIN", filter_empty=True)


def test_pictures_without_usable_annotations_are_left_out(own_datasets) -> None:
    register("mixed", [{"annotations": [{"iscrowd": 1}]}, {"annotations": [{"iscrowd": 0}], "image_id": 2}])
    assert [record["image_id"] for record in load_records(("mixed",), config_key="KEY", filter_empty=True)] == [2]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["dog", "cow"], "only cats has cat; only others has cow$"),
        (["cat", "dog", "cow"], "together: only others has cow$"),
        (["dog", "cat"], "their order is another"),
        ([f"animal {number}" for number in range(6)], "only others has animal 0, .*, animal 4, ...$"),
    ],
)
def test_data_sets_with_different_classes_cannot_be_joined_and_the_classes_are_named(
    own_datasets, classes, message
) -> None:
    register("cats", [{}], thing_classes=["cat", "dog"])
    register("others", [{}], thing_classes=classes)
    with pytest.raises(ValueError, match=rf"DATASETS\.TRAIN: cats, others differ in thing_classes, .*{message}"):
        load_records(("cats", "others"), config_key="DATASETS.TRAIN")


def test_videos_and_pictures_are_filtered_each_in_their_way(own_datasets) -> None:
    thing, crowd = {"iscrowd": 0, "category_id": 0}, {"iscrowd": 1, "category_id": 0}
    register("videos", [{"file_names": [], "annotations": [[crowd], frame]} for frame in ([thing], [])])
    register("pictures", [{"file_name": "", "annotations": objects} for objects in ([thing], [crowd], [thing])])
    names = ("videos", "pictures")
    assert [len(records) for records in load_datasets(names, config_key="KEY")] == [2, 3]
    assert [len(records) for records in load_datasets(names, config_key="KEY", filter_empty=True)] == [1, 2]


VIDEOS = [{"file_names": [], "annotations": [[{"category_id": 0}], []]} for _ in range(2)]
PICTURES = [{"file_name": "", "annotations": [{"category_id": number % 8 == 0}]} for number in range(8)]


def factors(*overrides: object):
    names = ["DATASETS.TRAIN", ("digits_video_train", "digits_instance_train")]
    return repeat_factors(load_config("configs/digits/video.yaml", [*names, *overrides]), [VIDEOS, PICTURES])


def test_an_epoch_is_divided_among_data_sets_by_their_shares() -> None:
    assert factors() is None
    assert factors("DATALOADER.DATASET_SHARES", [1, 1]).tolist() == [2.5] * 2 + [0.625] * 8
    assert factors("DATALOADER.DATASET_SHARES", [0.4, 1.6]).tolist() == [1.0] * 10


def test_rare_classes_of_videos_and_pictures_come_more_often_and_shares_multiply() -> None:
    sampler = ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 0.4]
    by_class = factors(*sampler)
    assert by_class.tolist() == pytest.approx([1, 1, 2] + [1] * 7)
    by_both = factors(*sampler, "DATALOADER.DATASET_SHARES", [1, 1])
    assert by_both.tolist() == pytest.approx([2.5, 2.5, 1.25] + [0.625] * 7)


@pytest.mark.parametrize("shares", [[1], [1, 0], [1, 2, 3]])
def test_shares_that_do_not_fit_the_data_sets_are_refused(shares) -> None:
    with pytest.raises(ValueError, match="must have one positive number for each of the 2 data sets"):
        factors("DATALOADER.DATASET_SHARES", shares)


@pytest.mark.parametrize(
    "name", ["coco_2017_val_panoptic_with_sem_seg", "digits_instance_train", "digits_semantic_val"]
)
def test_missing_files_are_named_with_the_expected_tree(tmp_path, monkeypatch, name) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    folder = MetadataCatalog.get(name).image_root
    assert folder.startswith(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{folder} does not exist. Expected files and folders"):
        load_records((name,), config_key="DATASETS.TRAIN")


def test_a_data_set_that_a_script_makes_comes_with_the_command(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"python datasets/prepare_digits\.py --output {tmp_path}/digits$"):
        load_records(("digits_panoptic_train",), config_key="DATASETS.TRAIN")


def edited_json(root: Path, tmp_path: Path, monkeypatch, name: str, edit) -> None:
    """Copies the data set and changes the text of one annotation file."""
    shutil.copytree(root / "digits", tmp_path / "digits")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    path = tmp_path / "digits" / "annotations" / f"{name}.json"
    path.write_text(edit(path.read_text()))


@pytest.mark.parametrize(
    ("form", "edit"),
    [
        ("panoptic", lambda text: text[: len(text) // 2]),
        ("instance", lambda text: text[: len(text) // 2]),
        ("panoptic", lambda text: "[]"),
        ("instance", lambda text: "[]"),
        ("panoptic", lambda text: text.replace('"annotations"', '"notes"')),
    ],
    ids=["panoptic cut off", "instance cut off", "panoptic a list", "instance a list", "panoptic without annotations"],
)
def test_an_annotation_file_that_cannot_be_used_is_named(digits_root, tmp_path, monkeypatch, form, edit) -> None:
    name = "panoptic_train" if form == "panoptic" else "instances_train"
    edited_json(digits_root, tmp_path, monkeypatch, name, edit)
    with pytest.raises(ValueError, match=rf"{name}\.json cannot be used"):
        load_records((f"digits_{form}_train",), config_key="DATASETS.TRAIN")


def test_a_category_that_the_annotation_file_does_not_list_is_named_with_the_file(
    digits_root, tmp_path, monkeypatch
) -> None:
    edit = lambda text: re.sub(r'"category_id": \d+', '"category_id": 99', text, count=1)  # noqa: E731
    edited_json(digits_root, tmp_path, monkeypatch, "instances_train", edit)
    with pytest.raises(ValueError, match=r"instances_train\.json .*category_id=99"):
        load_records(("digits_instance_train",), config_key="DATASETS.TRAIN")


def test_a_missing_semantic_label_file_is_an_error_with_its_name(digits_root, tmp_path, monkeypatch) -> None:
    shutil.copytree(digits_root / "digits", tmp_path / "digits")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "digits" / "semantic_train" / "000002.png").unlink()
    records = load_records(("digits_semantic_train",), config_key="DATASETS.TRAIN")
    assert len(records) == 8
    mapper = DATASET_MAPPER_REGISTRY.get("mask_former_semantic")(load_config("configs/digits/semantic.yaml"), True)
    with pytest.raises(BrokenSampleError, match=r"semantic_train/000002\.png does not exist"):
        mapper(records[2])


def test_data_sets_that_others_registered_get_the_same_message(own_datasets, tmp_path) -> None:
    register("elsewhere", [{}], image_root=str(tmp_path), json_file=str(tmp_path / "labels.json"))
    with pytest.raises(FileNotFoundError, match=r"labels\.json does not exist\. Expected files and folders"):
        load_records(("elsewhere",), config_key="DATASETS.TEST")


def test_registering_again_changes_the_root_and_keeps_what_others_registered(own_datasets, tmp_path) -> None:
    register("mine", [{}])
    try:
        register_all(str(tmp_path))
        assert MetadataCatalog.get("digits_panoptic_val").json_file.startswith(str(tmp_path))
        assert DatasetCatalog.get("mine") == [{}]
    finally:
        register_all()
    assert not MetadataCatalog.get("digits_panoptic_val").json_file.startswith(str(tmp_path))


def test_coco_panoptic_with_semantic_labels_is_registered_as_published(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    metadata = MetadataCatalog.get("coco_2017_val_panoptic_with_sem_seg")
    assert (len(metadata.thing_classes), len(metadata.stuff_classes)) == (80, 133)
    things, everything = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
    assert (min(things), max(things)) == (1, 90) and sorted(things.values()) == list(range(80))
    assert (min(everything), max(everything)) == (1, 200) and sorted(everything.values()) == list(range(133))
    expected = {
        "image_root": "coco/val2017",
        "sem_seg_root": "coco/panoptic_semseg_val2017",
        "panoptic_root": "coco/panoptic_val2017",
        "panoptic_json": "coco/annotations/panoptic_val2017.json",
        "json_file": "coco/annotations/instances_val2017.json",
    }
    assert {key: str(Path(metadata.get(key)).relative_to(tmp_path)) for key in expected} == expected
    assert set(metadata.as_dict()) == {
        *expected,
        *("name", "evaluator_type", "ignore_label", "label_divisor"),
        *("thing_classes", "thing_colors", "thing_dataset_id_to_contiguous_id"),
        *("stuff_classes", "stuff_colors", "stuff_dataset_id_to_contiguous_id"),
    }


@pytest.mark.parametrize("part", ["train", "val"])
def test_names_of_detectron2_get_the_published_metadata(part) -> None:
    register_all()  # once more: changes nothing
    coco = MetadataCatalog.get(f"coco_2017_{part}_panoptic")
    things = coco.thing_dataset_id_to_contiguous_id
    assert len(coco.thing_classes) == len(coco.thing_colors) == len(things) == 80
    assert (coco.thing_classes[0], coco.thing_classes[79], len(coco.stuff_classes)) == ("person", "toothbrush", 133)
    ade20k = MetadataCatalog.get(f"ade20k_sem_seg_{part}")
    assert len(ade20k.stuff_classes) == len(ade20k.stuff_colors) == 150
    assert ade20k.stuff_colors[2] == [6, 230, 230]  # sky


def test_detectron2_and_our_table_list_the_same_classes_of_ade20k() -> None:
    names = [category.name for category in load_categories("ade20k_150")]
    assert [name.strip() for name in MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes] == [
        n.strip() for n in names
    ]
