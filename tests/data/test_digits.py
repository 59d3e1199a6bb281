"""The embedded data set: reproducible, cleanly split, and the same scene in all its formats."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask2former.data.datasets.digits import (
    NUM_DIGITS,
    SPLITS,
    Disc,
    Scene,
    Texture,
    digit_crops,
    draw_scene,
    load_material,
    sample_scene,
    scene_random,
)
from mask2former.data.datasets.digits_writer import DigitsSettings, prepare_digits
from mask2former.data.masks import decode_segmentations, rgb_to_id

SMALL = DigitsSettings(num_train=3, num_val=2, size=48)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module", params=SPLITS)
def files(digits_root, request) -> dict:
    """Everything one split consists of."""
    root, split = digits_root / "digits", request.param
    panoptic = json.loads((root / "annotations" / f"panoptic_{split}.json").read_text())
    instances = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
    names = [image["file_name"] for image in panoptic["images"]]
    return {
        "split": split,
        "names": names,
        "images": [read(root / split / name) for name in names],
        "ids": [rgb_to_id(read(root / f"panoptic_{split}" / name)) for name in names],
        "semantic": [read(root / f"semantic_{split}" / name) for name in names],
        "panoptic": panoptic,
        "instances": instances,
    }


def disc(x: float, y: float, radius: float) -> Disc:
    return Disc(center=(x, y), radius=radius, picture=0, digit=0, angle=0.0, color=(0.2, 0.5, 0.9))


def scene_with(*discs: Disc) -> Scene:
    textures = [Texture(kind, top=0, left=0, side=96, quarter_turns=0, tint=(1.0, 0.9, 0.8)) for kind in (0, 2)]
    return Scene(96, (48.0, 48.0), 0.0, (textures[0], textures[1]), discs, noise_seed=1)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path) -> None:
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        prepare_digits(tmp_path / name, DigitsSettings(num_train=3, num_val=2, size=48, seed=seed))
    first, second, other = (all_bytes(tmp_path / name) for name in ("first", "second", "other"))
    assert first == second
    assert first["train/000000.png"] != other["train/000000.png"]


def test_a_scene_does_not_depend_on_how_many_are_made(tmp_path) -> None:
    prepare_digits(tmp_path / "few", SMALL)
    prepare_digits(tmp_path / "more", DigitsSettings(num_train=4, num_val=2, size=48))
    assert all_bytes(tmp_path / "few" / "train").items() <= all_bytes(tmp_path / "more" / "train").items()


def test_training_and_validation_share_no_digit_and_no_part_of_a_photograph() -> None:
    train, val = load_material("train"), load_material("val")
    digits = {split: {digit.tobytes() for digit in load_material(split).digits} for split in SPLITS}
    assert len(train.digits) + len(val.digits) == 1797
    assert not digits["train"] & digits["val"]
    assert 0.18 < len(val.digits) / 1797 < 0.22
    assert all(t.shape[1] + v.shape[1] == 512 for t, v in zip(train.textures, val.textures, strict=True))


def test_every_class_occurs_in_both_splits() -> None:
    for split in SPLITS:
        assert set(load_material(split).labels.tolist()) == set(range(NUM_DIGITS))


def test_an_unknown_split_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"split 'test' is unknown; choose from \['train', 'val'\]"):
        load_material("test")


def test_a_missing_package_is_named_with_the_cure(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn scikit-image"):
        load_material.__wrapped__("train")


def test_pictures_have_the_size_and_ids_that_the_annotations_say(files) -> None:
    for image, record in zip(files["images"], files["panoptic"]["images"], strict=True):
        assert image.shape == (record["height"], record["width"], 3) and image.dtype == np.uint8
    assert files["panoptic"]["images"] == files["instances"]["images"]


def test_the_panoptic_png_holds_exactly_the_segments_listed(files) -> None:
    for ids, annotation in zip(files["ids"], files["panoptic"]["annotations"], strict=True):
        segments = {segment["id"]: segment for segment in annotation["segments_info"]}
        assert len(segments) == len(annotation["segments_info"])
        assert set(np.unique(ids).tolist()) - {0} == set(segments)
        for identifier, segment in segments.items():
            rows, columns = np.nonzero(ids == identifier)
            left, top, width, height = segment["bbox"]
            assert segment["area"] == len(rows)
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())


def test_the_semantic_png_agrees_with_the_panoptic_one(files) -> None:
    order = {category["id"]: place for place, category in enumerate(files["panoptic"]["categories"])}
    for ids, semantic, annotation in zip(
        files["ids"], files["semantic"], files["panoptic"]["annotations"], strict=True
    ):
        expected = np.full(ids.shape, 255)
        for segment in annotation["segments_info"]:
            expected[ids == segment["id"]] = order[segment["category_id"]]
        assert np.array_equal(semantic, expected)


def test_instance_masks_are_the_panoptic_things_in_both_notations(files) -> None:
    things = {category["id"] for category in files["panoptic"]["categories"] if category["isthing"]}
    for ids, annotation in zip(files["ids"], files["panoptic"]["annotations"], strict=True):
        of_image = [a for a in files["instances"]["annotations"] if a["image_id"] == annotation["image_id"]]
        drawn = decode_segmentations([instance["segmentation"] for instance in of_image], ids.shape)
        instances = {(i["category_id"], mask.tobytes()) for i, mask in zip(of_image, drawn, strict=True)}
        panoptic = {
            (segment["category_id"], (ids == segment["id"]).tobytes())
            for segment in annotation["segments_info"]
            if segment["category_id"] in things
        }
        assert instances == panoptic


def test_both_notations_of_instance_masks_occur(digits_root) -> None:
    path = digits_root / "digits" / "annotations" / "instances_train.json"
    kinds = {type(annotation["segmentation"]) for annotation in json.loads(path.read_text())["annotations"]}
    assert kinds == {list, dict}


def test_a_disc_that_is_covered_completely_is_not_annotated() -> None:
    drawn = draw_scene(scene_with(disc(30, 30, 12), disc(30, 30, 20)), load_material("train"))
    discs = [segment for segment in drawn.segments if segment.is_thing]
    assert len(discs) == 1 and discs[0].is_whole


def test_a_leftover_of_less_than_a_tenth_is_void() -> None:
    drawn = draw_scene(scene_with(disc(30, 30, 14), disc(31, 30, 14.2)), load_material("train"))
    assert sum(segment.is_thing for segment in drawn.segments) == 1
    assert not np.any([segment.mask for segment in drawn.segments], axis=0).all()


def test_a_disc_under_another_keeps_only_its_visible_part() -> None:
    below, above = disc(30, 30, 14), disc(45, 30, 14)
    alone = draw_scene(scene_with(below), load_material("train")).segments[-1].mask
    drawn = draw_scene(scene_with(below, above), load_material("train")).segments
    assert np.array_equal(drawn[-2].mask, alone & ~drawn[-1].mask)
    assert not drawn[-2].is_whole and drawn[-1].is_whole


@pytest.mark.parametrize("index", range(10))
def test_segments_never_overlap(index) -> None:
    material = load_material("train")
    drawn = draw_scene(sample_scene(material, size=64, random=scene_random(0, "train", index)), material)
    assert np.sum([segment.mask for segment in drawn.segments], axis=0).max() == 1


@pytest.mark.parametrize("size", [32, 200])
def test_scenes_can_have_any_size(size) -> None:
    material = load_material("val")
    drawn = draw_scene(sample_scene(material, size=size, random=scene_random(0, "val", 0)), material)
    assert drawn.image.shape == (size, size, 3)


def test_crops_show_every_class_and_repeat_with_the_seed() -> None:
    first, second = (digit_crops("train", 32, np.random.default_rng(3)) for _ in range(2))
    crops = [next(first) for _ in range(200)]
    assert {category for _, category in crops} == set(range(13))
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image, _ in crops)
    image, category = next(second)
    assert np.array_equal(image, crops[0][0]) and category == crops[0][1]


def test_preparing_again_changes_nothing(tmp_path) -> None:
    assert prepare_digits(tmp_path / "digits", SMALL)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "digits").rglob("*")}
    assert not prepare_digits(tmp_path / "digits", SMALL)
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "digits").rglob("*")}


def test_a_folder_with_other_settings_is_only_replaced_on_demand(tmp_path) -> None:
    prepare_digits(tmp_path / "digits", SMALL)
    before = all_bytes(tmp_path / "digits")
    other = DigitsSettings(num_train=1, num_val=1, size=48)
    with pytest.raises(ValueError, match="was prepared with other settings"):
        prepare_digits(tmp_path / "digits", other)
    assert all_bytes(tmp_path / "digits") == before
    assert prepare_digits(tmp_path / "digits", other, overwrite=True)
    assert len(list((tmp_path / "digits" / "train").iterdir())) == 1


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_somebody_else_are_never_touched(tmp_path, overwrite) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="did not write"):
        prepare_digits(tmp_path, SMALL, overwrite=overwrite)
    assert all_bytes(tmp_path) == {"notes.txt": b"mine"}


def test_an_interrupted_preparation_leaves_nothing_behind(tmp_path) -> None:
    def interrupt(indices, split):
        yield next(iter(indices))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_digits(tmp_path / "digits", SMALL, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_replacement_keeps_the_old_folder(tmp_path) -> None:
    prepare_digits(tmp_path / "digits", SMALL)
    before = all_bytes(tmp_path)

    def interrupt(indices, split):
        yield next(iter(indices))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_digits(tmp_path / "digits", SMALL, overwrite=True, progress=interrupt)
    assert all_bytes(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_val": 0}, "at least one scene"), ({"size": 8}, "at least 32 pixels"), ({"seed": -1}, "seed must be 0")],
)
def test_impossible_settings_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        DigitsSettings(**changes)


def test_the_script_writes_and_says_what_it_did(tmp_path, capsys) -> None:
    script = runpy.run_path("datasets/prepare_digits.py")
    arguments = ["--output", str(tmp_path / "digits"), "--train", "2", "--val", "1", "--size", "32"]
    for message in ("2 + 1 scenes written", "2 + 1 scenes already there"):
        script["main"](arguments)
        assert message in capsys.readouterr().out
    with pytest.raises(SystemExit, match="was prepared with other settings"):
        script["main"]([*arguments, "--seed", "3"])


@pytest.mark.parametrize("form", ["panoptic", "instance", "semantic"])
def test_the_registered_names_load(digits_root, form) -> None:
    train, val = (DatasetCatalog.get(f"digits_{form}_{split}") for split in SPLITS)
    assert (len(train), len(val)) == (8, 4)
    assert all(Path(record["file_name"]).is_file() for record in train + val)


def test_panoptic_records_have_contiguous_classes(digits_root) -> None:
    for record in DatasetCatalog.get("digits_panoptic_train"):
        assert Path(record["pan_seg_file_name"]).is_file() and Path(record["sem_seg_file_name"]).is_file()
        assert all(segment["isthing"] == (segment["category_id"] < 10) for segment in record["segments_info"])
        assert {segment["category_id"] for segment in record["segments_info"]} <= set(range(13))


def test_metadata_say_what_the_evaluators_need(digits_root) -> None:
    metadata = MetadataCatalog.get("digits_panoptic_val")
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert metadata.thing_dataset_id_to_contiguous_id == {digit + 1: digit for digit in range(10)}
    assert metadata.stuff_dataset_id_to_contiguous_id == {place + 1: place for place in range(13)}
    assert metadata.stuff_classes == [f"digit_{digit}" for digit in range(10)] + ["brick", "grass", "gravel"]
    assert (metadata.ignore_label, metadata.label_divisor) == (255, 1000)
    assert Path(metadata.json_file).is_file() and Path(metadata.panoptic_json).is_file()
    assert MetadataCatalog.get("digits_instance_val").evaluator_type == "coco"
    assert MetadataCatalog.get("digits_semantic_val").evaluator_type == "sem_seg"
